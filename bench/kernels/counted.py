"""What `bench kernels --count` prints: launches, bytes and FLOP of a meta-step, counted in Triton's interpreter.

A meta-step on images is too much for an interpreter. There one task with a few images takes one inner step, and what
grows with the images is distinguished from what does not: a tensor whose size goes up with the number of samples holds
images, any other rows of parameters (θ, φ, λ, v, states, schedules). Bytes of images and FLOP are proportional to the
images. FLOP are what kernels multiply, the padding of their tiles included, of which many images need a little less
each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

from bench.floors import FusedBytes, fused_bytes
from bench.workloads import WORKLOADS, Workload
from fastmeta.engine.session import Session
from fastmeta.train.progress import Progress

from .compiled import Row
from .sessions import session

GRADIENT, QUERY, PRODUCT = "adapt", "apply", "adjoint"
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
    """What a meta-step of a workload on images moves and multiplies.

    Attributes:
        workload: at its full size.
        phases: of "adapt", "apply", "adjoint", and "" for the launches outside of any.
        launches: of a whole meta-step.
        fused: the least that fused layers move for an image.
        counted: images of each set that were interpreted.
        asked, moved: bytes of those.
        rows: the same by launch.
    """

    workload: Workload
    phases: Mapping[str, Share]
    launches: int
    fused: FusedBytes
    counted: int
    asked: int
    moved: int
    rows: list[Row]

    def images(self, phase: str) -> int:
        """Images that go through a phase in a meta-step of all tasks."""
        support = self.workload.steps * self.workload.support
        return self.workload.tasks * {GRADIENT: support, QUERY: self.workload.query, PRODUCT: support}.get(phase, 0)

    def by_phase(self) -> dict[str, Row]:
        """For a file."""
        return {name or "end": asdict(share) for name, share in self.phases.items()}

    def row_bytes(self) -> int:
        """Of a meta-step of all tasks; θ, which they share in the first step, as if each had its own."""
        steps = {GRADIENT: self.workload.steps, PRODUCT: self.workload.steps}
        return self.workload.tasks * sum(steps.get(name, 1) * share.row_bytes for name, share in self.phases.items())

    def image_bytes(self) -> float:
        """Of a meta-step of all tasks."""
        return sum(self.images(name) * share.image_bytes for name, share in self.phases.items())

    def fused_bytes(self) -> int:
        """The least that fused layers move for the images of a meta-step of all tasks."""
        gradients = self.images(GRADIENT) + self.images(QUERY)
        return gradients * self.fused.gradient + self.images(PRODUCT) * self.fused.hessian_product

    def flop(self) -> float:
        """Of products, in a meta-step of all tasks."""
        return sum(self.images(name) * share.image_flop for name, share in self.phases.items())


def on_images(workload: Workload) -> bool:
    """Whether a sample is an image, of which an interpreter can run a few only."""
    return len(workload.sample_shape) == 3


def per_image(workload: Workload, precision: str = "float32", *, images: int | None = None) -> PerImage:
    """Counts a workload on images with so many of each set, in minutes.

    `images` are five by default, and one of those larger than Omniglot's.
    """
    check_interpreted()
    from fastmeta.kernels import tiles  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]  # mapped by setup.py

    if not on_images(workload):
        raise ValueError(f"{workload.name} is no workload on images")
    if images is None:
        images = 5 if max(workload.sample_shape[1:]) <= 28 else 1
    # one task's sums over pixels are shared out among as many programs as where there are all tasks
    with tiles.shared_among(-(-tiles.PROGRAMS // workload.tasks)):
        return _per_image(workload, images, precision)


def _per_image(workload: Workload, n: int, precision: str) -> PerImage:
    from fastmeta.kernels.counts import counting, listing  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    few, many = (replace(workload, tasks=1, support=m, query=m, steps=1) for m in (n, _MORE * n))
    bar = Progress(1)
    counted = _meta_step(few, precision, lambda: counting(progress=_shown(bar)))
    bar.close()
    own, others = (_meta_step(case, precision, listing).records for case in (few, many))
    totals: dict[str, list[float]] = {}
    rows: dict[tuple[str, str], Row] = {}
    for record, mine, other in zip(counted.records, own, others, strict=True):
        if not record.name == mine.name == other.name:
            raise RuntimeError("another number of samples makes other launches: bytes an image are not known")
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
    return PerImage(
        workload=workload, phases={name: Share(a, int(b), c) for name, (a, b, c) in totals.items()},
        launches=len(_meta_step(replace(workload, tasks=1), precision, listing).records),
        fused=fused_bytes(workload, precision), counted=n, asked=counted.loaded + counted.stored,
        moved=counted.moved(), rows=list(rows.values()),
    )  # fmt: skip


def _meta_step(workload: Workload, precision: str, instrument: Callable[[], Any]) -> Any:
    """What the instrument, `counting` or `listing`, has counted in one meta-step; its records say the phase."""
    step = session(workload, precision)
    with instrument() as counts, _phases(counts):
        step.meta_step(keep=True)
    return counts


@contextmanager
def _phases(counts: Any) -> Iterator[None]:
    """Inside, launches are in the phase of the launchers' function that makes them."""
    from fastmeta.kernels.layerwise import Layerwise  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    def noting(name: str) -> Callable[..., Any]:
        function = getattr(Layerwise, name)

        def noted(*args: Any, **options: Any) -> Any:
            counts.phase = name
            try:
                return function(*args, **options)
            finally:
                counts.phase = ""

        return noted

    with ExitStack() as stack:
        for name in (GRADIENT, QUERY, PRODUCT):
            stack.enter_context(mock.patch.object(Layerwise, name, noting(name)))
        yield


def _shown(bar: Progress) -> Callable[[str, int, int], None]:
    def show(name: str, done: int, total: int) -> None:
        if done == 1:
            bar.restart(total)
        bar.advance(done)
        if done < total:
            bar.status(name)

    return show


def check_interpreted() -> None:
    """Raises RuntimeError where kernels are compiled, or were imported to be."""
    from triton import knobs

    if not knobs.runtime.interpret:
        raise RuntimeError(
            "counting runs kernels in Triton's interpreter, and they are compiled here: set TRITON_INTERPRET=1 before "
            "fastmeta.kernels is imported (`python -m bench kernels` does)"
        )


def counts(workload: str, precision: str = "float32") -> Row:
    """Launches, bytes and FLOP of one meta-step; on images from what an image takes.

    "fused" are the least bytes that a scheme of fused layers moves for images (`floors.fused_bytes`).
    `compulsory` bytes are the tasks' data, θ, and what a meta-step gives: losses, outputs, flags, every task's λ_0 and
    their mean. The trajectory φ_1 … φ_K is listed by itself.
    """
    check_interpreted()
    from fastmeta.kernels.counts import counting, listing  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    chosen = WORKLOADS[workload]
    if on_images(chosen):
        with listing():
            compulsory = _compulsory(session(chosen, precision))
        return {"workload": workload, "precision": precision, **_scaled(per_image(chosen, precision), compulsory)}
    bar = Progress(1)
    step = session(chosen, precision)
    with counting(progress=_shown(bar)) as counted:
        compulsory = _compulsory(step)
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
    step = session.meta_step(keep=True)
    tasks, cotangents = step.tasks, step.tasks.cotangents
    assert step.gradient is not None
    assert cotangents is not None
    assert isinstance(session.at.start, tuple)
    tensors = [
        batch.support_x, batch.support_y, batch.query_x, batch.query_y, *session.at.start, step.loss,
        step.gradient.start, tasks.losses, *tasks.outputs, tasks.finite, cotangents.start,
    ]  # fmt: skip
    return sum(t.numel() * t.element_size() for t in tensors)


def _scaled(found: PerImage, compulsory: int) -> Row:
    """A meta-step of all tasks from what an image takes."""
    full = found.workload
    row: Row = {
        "sizes": f"T={full.tasks}, N={full.support}, M={full.query}, K={full.steps}",
        "launches": found.launches,
    }
    least = (("gradient", GRADIENT, found.fused.gradient), ("Hessian product", PRODUCT, found.fused.hessian_product))
    for name, phase, fused in least:
        share = found.phases[phase]
        row |= {
            f"{name}: moved bytes an image": round(share.image_bytes),
            f"{name}: fused bytes an image": fused,
            f"{name}: moved / fused": round(share.image_bytes / fused, 3),
            f"{name}: FLOP of products an image": round(share.image_flop),
            f"{name}: bytes of parameter rows a task": share.row_bytes,
        }
    return row | {
        "moved bytes of images": round(found.image_bytes()),
        "fused bytes": found.fused_bytes(),
        "moved / fused": round(found.image_bytes() / found.fused_bytes(), 3),
        "moved bytes of parameter rows": found.row_bytes(),
        "compulsory bytes": compulsory,
        "FLOP of products": round(found.flop()),
        f"asked for / moved, at {found.counted} images": round(found.asked / found.moved, 2),
        f"launches at {found.counted} images": found.rows,
    }
