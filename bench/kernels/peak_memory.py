"""What `bench kernels --peak-memory` prints: bytes of tensors that are alive at once in a meta-step. No kernel runs."""

from __future__ import annotations

import weakref
from typing import Any, Literal

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bench.workloads import WORKLOADS, Workload
from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import FOMAML, MAML

from .counted import Row, check_interpreted
from .sessions import session


class Alive(TorchDispatchMode):
    """Bytes of tensors made inside that are alive at once, the most of them, whatever device they are on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


LEARNERS: dict[str, tuple[type[MetaLearner], Literal["save", "recompute"]]] = {
    "exact MAML": (MAML, "save"), "exact MAML, recomputing": (MAML, "recompute"), "first-order MAML": (FOMAML, "save"),
}  # fmt: skip
"""What the peaks of are set side by side: algorithm, and its option `memory`."""


def peak_bytes(workload: Workload, learner: str, precision: str = "float32") -> int:
    """Of tensors that a meta-step makes; what stood before it, data and θ, is not counted. No kernel runs."""
    check_interpreted()
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]  # mapped by setup.py

    algorithm, memory = LEARNERS[learner]
    step = session(workload, precision, algorithm=algorithm, memory=memory)
    with launch.through(lambda *_: None), Alive() as alive:
        step.meta_step(keep=True)
    return alive.most


def peak_memory(workload: str, precision: str = "float32") -> Row:
    """Peak memory of a meta-step at full size, and its ratio to first-order MAML's."""
    peaks = {learner: peak_bytes(WORKLOADS[workload], learner, precision) for learner in LEARNERS}
    first = peaks["first-order MAML"]
    ratios = {f"{name} / first-order": round(peak / first, 3) for name, peak in peaks.items() if peak is not first}
    return {"workload": workload, "precision": precision, **{f"{k}, bytes": v for k, v in peaks.items()}, **ratios}
