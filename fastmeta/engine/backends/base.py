"""What runs a meta-step on all tasks: the interface of every backend."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from fastmeta.engine.adjoint import Cotangents
from fastmeta.engine.meta_step import Engine, MetaGradient, MetaInputs
from fastmeta.engine.objective import Context, Data
from fastmeta.optim.base import State
from fastmeta.program.losses import check_labels_of

from .choose import Choice
from .cuda_graph import MetaStepGraphs


class Adapted(NamedTuple):
    """What adaptation gives."""

    phi: Tensor  # φ_K [T, P]
    state: State  # of the inner rule, after the last step
    pull: Callable[[Tensor, State], Cotangents]
    """(λ_K, σ_K) → each task's cotangents at φ_0; may be called again."""


Pullback = Callable[[Sequence[Tensor | None]], Cotangents]
"""Cotangents of outputs → those of each task; `start` is φ's."""


class Backend(Protocol):
    """What runs the engine's functions on all tasks of a meta-batch, planned for one set of shapes."""

    records: ClassVar[bool]
    """Whether results carry a graph of PyTorch's own autograd, so that nothing needs to be put around them."""

    runs_by: str
    """What runs the ops, for explain()."""

    def keys(self) -> Tensor:
        """The tasks' random keys [T]."""
        ...

    def check_labels(self, support: Data, query: Data | None) -> None:
        """Raises ValueError where class labels are out of range."""
        ...

    def output_tree(self, outputs: Sequence[Tensor]) -> Any:
        """Outputs in the structure that the module returns."""
        ...

    def meta_step(
        self, at: MetaInputs, support: Data, query: Data, context: Context, *, keep: bool, shares: bool = True
    ) -> MetaGradient:
        """Losses, outputs and, where `keep` says so, the meta-gradient and each task's share of it, which may be left
        out where `shares` does not ask for it."""
        ...

    def adapt(self, at: MetaInputs, support: Data, context: Context, *, keep: bool) -> Adapted:
        """φ_K of every task."""
        ...

    def outputs(
        self, phi: Tensor, support: Data, inputs: tuple[Tensor, ...], context: Context
    ) -> tuple[list[Tensor], Pullback]:
        """Query outputs [T, M, ...] at φ [T, P]."""
        ...


class Planned:
    """What backends that run an engine have in common."""

    records: ClassVar[bool] = False
    chunk: int | None = None  # tasks at a time, where the user chose
    runs_by: str = ""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.graphs: MetaStepGraphs | None = None  # of its meta-steps, where they are to be replayed
        self.proof = ""  # what its plans were held against, for explain()
        self.choice = Choice("torch", "")  # why it is this backend

    def apart(self, own: dict[Hashable, Tensor]) -> AbstractContextManager[None]:
        """As `cuda_graph.Recorded` asks; PyTorch's ops leave nothing behind."""
        return nullcontext()

    def check_labels(self, support: Data, query: Data | None) -> None:
        """Where a loss is cross-entropy of labels: each within the logits' classes."""
        inner, outer = self.engine.loop.objective, self.engine.outer
        check_labels_of("support_y", inner.loss, inner.plan, support.targets)
        if query is not None:
            check_labels_of("query_y", outer.loss, outer.plan, query.targets)

    def output_tree(self, outputs: Sequence[Tensor]) -> Any:
        """Outputs in the structure that the module returns."""
        return self.engine.outer.plan.output_tree(outputs)
