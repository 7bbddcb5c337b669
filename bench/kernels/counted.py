"""What `bench kernels --count` and `--peak-memory` print: launches, bytes, FLOP and peak memory of meta-steps.

Nothing needs a GPU: launches run in Triton's interpreter, or not at all where only their arguments matter.

A meta-step on images is too much for an interpreter. There one task with a few images takes one inner step, and what
scales with images is told from what does not: a tensor whose size goes up with the number of samples holds images, any
other rows of parameters (θ, φ, λ, v, states, schedules). Bytes of images and FLOP are proportional to the images. FLOP
are what kernels multiply, with what fills up their tiles, of which many images need a little less each.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta.algorithms.maml import FOMAML, MAML
from fastmeta.engine.session import Session
from fastmeta.train.progress import Progress

from .compiled import WORKLOADS, FewShot, Row, Workload

GRADIENT, QUERY, HVP = "adapt", "apply", "adjoint"
"""A meta-step's phases, by the launchers' functions: gradients on the support set, the query pass, Hessian products."""

_MORE = 16  # times the images that are counted, to see what grows with them


@dataclass(frozen=True)
class Share:
    """Of one phase, for one task and one inner step: bytes moved and FLOP an image; bytes of parameter rows in all."""

    image_bytes: float
    row_bytes: int
    image_flop: float


@dataclass(frozen=True)
class PerImage:
    """What a meta-step of a network moves and multiplies, by phase; "" are the launches outside of any."""

    sizes: FewShot
    steps: int
    phases: Mapping[str, Share]
    launches: int
    b3: Mapping[str, int]  # bytes an image of a scheme that stores no first block and nothing twice
    counted: int  # images of each set that were interpreted
    asked: int  # bytes of that
    moved: int
    rows: list[Row]  # and that by launch

    def images(self, phase: str) -> int:
        """Images that go through a phase in a meta-step of all tasks."""
        per_task = {GRADIENT: self.steps * self.sizes.support, QUERY: self.sizes.query}
        return self.sizes.tasks * (per_task | {HVP: per_task[GRADIENT]}).get(phase, 0)

    def by_phase(self) -> dict[str, Row]:
        """For a file."""
        return {name or "end": asdict(share) for name, share in self.phases.items()}

    def row_bytes(self) -> int:
        """Of a meta-step of all tasks; θ, which they share in the first step, as if each had its own."""
        steps = {GRADIENT: self.steps, HVP: self.steps}
        return self.sizes.tasks * sum(steps.get(name, 1) * share.row_bytes for name, share in self.phases.items())

    def image_bytes(self) -> float:
        return sum(self.images(name) * share.image_bytes for name, share in self.phases.items())

    def b3_bytes(self) -> int:
        return sum(self.images(name) * self.b3[name] for name in (GRADIENT, QUERY, HVP))

    def flop(self) -> float:
        return sum(self.images(name) * share.image_flop for name, share in self.phases.items())


def b3(network: Any, precision: str) -> dict[str, int]:
    """The least bytes an image that a scheme of fused layers moves.

    Z' are convolution outputs of all blocks but the first, P pooled ones, X is the image: a gradient takes 4Z' + 6P +
    5X values, a Hessian product 7Z' + 10P + 8X. The first block is computed again from the image.
    """
    convolutions = [stage for stage in network.stages if hasattr(stage, "filters")]
    size = 2 if precision == "bfloat16" else 4
    z = sum(prod(c.out) * c.filters for c in convolutions[1:])
    p = sum(prod(c.pooled) * c.filters for c in convolutions)
    x = convolutions[0].height * convolutions[0].width * convolutions[0].channels
    gradient = size * (4 * z + 6 * p + 5 * x)
    return {GRADIENT: gradient, QUERY: gradient, HVP: size * (7 * z + 10 * p + 8 * x)}


def per_image(work: Workload, precision: str = "float32") -> PerImage:
    """Counts a workload on images, in minutes."""
    assert work.sizes is not None, "a workload on images"
    with _shared_out_as_for(work.sizes.tasks):
        return _per_image(work, work.sizes, precision)


@contextmanager
def _shared_out_as_for(tasks: int) -> Iterator[None]:
    """One task's sums over pixels are shared out among as many programs as where there are so many tasks."""
    from fastmeta.kernels import tiles  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]  # mapped by setup.py

    before = tiles.PROGRAMS
    tiles.PROGRAMS = -(-before // tasks)
    try:
        yield
    finally:
        tiles.PROGRAMS = before


def _per_image(work: Workload, full: FewShot, precision: str) -> PerImage:
    from fastmeta.kernels.counts import counting, listing  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    n = work.counted
    few, many = (work.at(full._replace(tasks=1, support=m, query=m), steps=1) for m in (n, _MORE * n))
    bar = Progress(1)
    session = few.session(precision)
    counted = _run(session, lambda: counting(progress=_shown(bar)))
    bar.close()
    own, others = (_run(case.session(precision), listing).records for case in (few, many))
    totals: dict[str, list[float]] = {}
    rows: dict[tuple[str, str], Row] = {}
    for record, mine, other in zip(counted.records, own, others, strict=True):
        if not record.name == mine.name == other.name:
            raise RuntimeError("another number of samples makes other launches: bytes an image cannot be told")
        # parts of statistics are a little more of more images, up to a limit
        pairs = zip(mine.arguments, other.arguments, strict=True)
        grows = [2 * size_of_many > _MORE * size for (_, size), (_, size_of_many) in pairs]
        starts = {start for (start, _), growing in zip(record.arguments, grows, strict=True) if growing}
        by_image = record.bytes(starts.__contains__)
        by_row = record.bytes() - by_image
        figures = {"image bytes": by_image, "row bytes": by_row, "FLOP": record.flop, "launches": 1}
        row = rows.setdefault((record.phase, record.name), {"phase": record.phase, "launch": record.name})
        for key, figure in figures.items():
            row[key] = row.get(key, 0) + figure
        total = totals.setdefault(record.phase, [0, 0, 0])
        for i, figure in enumerate((by_image / n, by_row, record.flop / n)):
            total[i] += figure
    whole = work.at(full._replace(tasks=1)).session(precision)
    return PerImage(
        sizes=full, steps=work.steps,
        phases={name: Share(a, int(b), c) for name, (a, b, c) in totals.items()},
        launches=len(_run(whole, listing).records),
        b3=b3(session.backend._kernels.network, precision),  # pyright: ignore[reportAttributeAccessIssue]
        counted=n, asked=counted.loaded + counted.stored, moved=counted.moved(), rows=list(rows.values()),
    )  # fmt: skip


def _run(session: Session, how: Callable[[], Any]) -> Any:
    """One meta-step inside `how`, whose records say the phase."""
    with how() as counts, _phases(session, counts):
        session.meta_step(keep=True)
    return counts


@contextmanager
def _phases(session: Session, counts: Any) -> Iterator[None]:
    """Inside, launches are in the phase of the launchers' function that makes them."""
    kernels: Any = session.backend._kernels  # pyright: ignore[reportAttributeAccessIssue]  # a TritonBackend

    def noting(name: str) -> Callable[..., Any]:
        function = getattr(kernels, name)

        def noted(*args: Any, **options: Any) -> Any:
            counts.phase = name
            try:
                return function(*args, **options)
            finally:
                counts.phase = ""

        return noted

    names = (GRADIENT, QUERY, HVP)
    kernels.__dict__.update({name: noting(name) for name in names})  # past a frozen dataclass
    try:
        yield
    finally:
        for name in names:
            del kernels.__dict__[name]


def _shown(bar: Progress) -> Callable[[str, int, int], None]:
    def show(name: str, done: int, total: int) -> None:
        if done == 1:
            bar.restart(total)
        bar.advance(done)
        if done < total:
            bar.status(name)

    return show


def interpreted() -> None:
    """Kernels are imported for Triton's interpreter."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported


def counts(workload: str, precision: str = "float32") -> Row:
    """Launches, bytes and FLOP of one meta-step; on images from what an image takes.

    `compulsory` bytes are the tasks' data, θ, and what a meta-step gives: losses, outputs, flags, every task's λ_0 and
    their mean. The trajectory φ_1 … φ_K is listed by itself.
    """
    interpreted()
    from fastmeta.kernels.counts import counting, listing  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    work = WORKLOADS[workload]
    if work.sizes is not None:
        with listing():
            compulsory = _compulsory(work.session(precision))
        return {"workload": workload, "precision": precision, **_scaled(per_image(work, precision), compulsory)}
    bar = Progress(1)
    session = work.session(precision)
    with counting(progress=_shown(bar)) as counted:
        compulsory = _compulsory(session)
    bar.close()
    distinct = counted.distinct()
    return {
        "workload": workload,
        "precision": precision,
        "launches": counted.launches,
        "bytes asked for": counted.loaded + counted.stored,
        "moved bytes": counted.moved(),
        "distinct bytes": distinct,
        "compulsory bytes": compulsory,
        "distinct / compulsory": round(distinct / compulsory, 3),
        "trajectory bytes": sum(t.numel() * t.element_size() for t in counted.trajectory),
        "FLOP of products": sum(record.flop for record in counted.records),
    }


def text(row: Row) -> str:
    """For people: a line for each figure, and one for each of its parts where it has parts of several figures."""
    lines: list[str] = []
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{key}:")
            lines += ["  " + ", ".join(f"{name} {figure}" for name, figure in part.items() if name) for part in value]
        else:
            lines.append(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    return "\n".join(lines)


def _compulsory(session: Session) -> int:
    """Runs a meta-step, for the sizes of what comes in and goes out."""
    batch = session.batch
    loss, gradient, (losses, outputs, finite, lam), _ = session.meta_step(keep=True)
    assert gradient is not None
    assert lam is not None
    tensors = [batch.support_x, batch.support_y, batch.query_x, batch.query_y, *session.params, loss, gradient, losses,
               *outputs, finite, lam]  # fmt: skip
    return sum(t.numel() * t.element_size() for t in tensors)


def _scaled(found: PerImage, compulsory: int) -> Row:
    """A meta-step of all tasks from what an image takes."""
    row: Row = {
        "sizes": f"T={found.sizes.tasks}, N={found.sizes.support}, M={found.sizes.query}, K={found.steps}",
        "launches": found.launches,
    }
    for name, phase in (("gradient", GRADIENT), ("Hessian product", HVP)):
        share = found.phases[phase]
        row |= {
            f"{name}: moved bytes an image": round(share.image_bytes),
            f"{name}: B3 bytes an image": found.b3[phase],
            f"{name}: moved / B3": round(share.image_bytes / found.b3[phase], 3),
            f"{name}: FLOP of products an image": round(share.image_flop),
            f"{name}: bytes of parameter rows a task": share.row_bytes,
        }
    return row | {
        "moved bytes of images": round(found.image_bytes()),
        "B3 bytes": found.b3_bytes(),
        "moved / B3": round(found.image_bytes() / found.b3_bytes(), 3),
        "moved bytes of parameter rows": found.row_bytes(),
        "compulsory bytes": compulsory,
        "FLOP of products": round(found.flop()),
        f"asked for / moved, at {found.counted} images": round(found.asked / found.moved, 2),
        f"launches at {found.counted} images": found.rows,
    }


# --- memory ---


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


LEARNERS: dict[str, tuple[type, str]] = {
    "exact MAML": (MAML, "save"), "exact MAML, recomputing": (MAML, "recompute"), "first-order MAML": (FOMAML, "save"),
}  # fmt: skip


def peak_bytes(work: Workload, learner: str, precision: str = "float32") -> int:
    """Of tensors that a meta-step makes; what stood before it, data and θ, is not counted. No kernel runs."""
    interpreted()
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]  # mapped by setup.py

    algorithm, memory = LEARNERS[learner]
    session = work.session(precision, algorithm=algorithm, memory=memory)
    run, launch.run = launch.run, lambda *_: None
    try:
        with Alive() as alive:
            session.meta_step(keep=True)
    finally:
        launch.run = run
    return alive.most


def memory(workload: str, precision: str = "float32") -> Row:
    """Peak memory of a meta-step at full size, and its ratio to first-order MAML's."""
    peaks = {learner: peak_bytes(WORKLOADS[workload], learner, precision) for learner in LEARNERS}
    first = peaks["first-order MAML"]
    ratios = {f"{name} / first-order": round(peak / first, 3) for name, peak in peaks.items() if peak is not first}
    return {"workload": workload, "precision": precision, **{f"{k}, bytes": v for k, v in peaks.items()}, **ratios}
