"""What every family of tasks offers: batches of episodes, sampled on one device."""

from __future__ import annotations

import time
from collections.abc import Sized
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Episodes(NamedTuple):
    """A meta-batch in the order the algorithms take it: `maml(*family.sample(tasks, generator))`.

    Support tensors are [T, N, ...], query tensors [T, M, ...], all on one device.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __repr__(self) -> str:
        parts = (f"{n}={str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for n, x in self._asdict().items())
        return f"Episodes({', '.join(parts)})"


class TaskFamily(Protocol):
    """A distribution over tasks. Training and evaluation need nothing else of it."""

    @property
    def device(self) -> torch.device:
        """Where the episodes are sampled and where they lie."""
        ...

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` independent episodes. The same generator state gives the same episodes."""
        ...


@dataclass(frozen=True)
class Shots:
    """How many samples a task has.

    Attributes:
        ways: classes C of a task; None where samples have no classes, as in regression.
        shots: support samples, of each class where there are classes.
        queries: query samples, likewise.

    Raises:
        ValueError: fewer than two ways, one shot or one query.
    """

    ways: int | None
    shots: int
    queries: int

    def __post_init__(self) -> None:
        if self.ways is not None:
            check_count("ways", self.ways, minimum=2)
        check_count("shots", self.shots)
        check_count("queries", self.queries)

    @property
    def draws(self) -> int:
        """Samples of a class, support and query."""
        return self.shots + self.queries

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Support and query samples of x [T, N + M, ...], support in front."""
        n = (self.ways or 1) * self.shots
        return x[:, :n], x[:, n:]

    def episodes(self, x: Tensor, y: Tensor) -> Episodes:
        """Episodes of inputs and targets [T, N + M, ...], support in front."""
        (support_x, query_x), (support_y, query_y) = self.split(x), self.split(y)
        return Episodes(support_x, support_y, query_x, query_y)

    def classification(self, x: Tensor) -> Episodes:
        """Episodes of inputs [T, N + M, ...] that stand shot by shot: class 0, 1, ..., then class 0, 1, ... again."""
        assert self.ways is not None
        y = torch.arange(self.ways, device=x.device).repeat(self.draws).expand(len(x), -1)
        return self.episodes(x, y)


class Sampler:
    """What the families of this package share: counts, a device, and the checks of `sample`.

    Attributes:
        counts: samples of a task.
        device: where episodes are sampled and where they lie.
    """

    def __init__(self, counts: Shots, device: torch.device | str) -> None:
        self.counts, self.device = counts, torch.device(device)

    def __repr__(self) -> str:
        ways = "" if self.counts.ways is None else f"ways={self.counts.ways}, "
        counts = f"{ways}shots={self.counts.shots}, queries={self.counts.queries}"
        return f"{type(self).__name__}({counts}, device={str(self.device)!r})"

    @property
    def ways(self) -> int:
        """Classes of a task.

        Raises:
            AttributeError: where samples have no classes.
        """
        if self.counts.ways is None:
            raise AttributeError(f"tasks of {type(self).__name__} have no classes, and so no ways")
        return self.counts.ways

    @property
    def shots(self) -> int:
        """Support samples of a task, of each class where there are classes."""
        return self.counts.shots

    @property
    def queries(self) -> int:
        """Query samples of a task, of each class where there are classes."""
        return self.counts.queries

    def _check_sample(self, tasks: int, generator: torch.Generator) -> None:
        """Raise ValueError unless `sample` may be called so."""
        check_count("tasks", tasks)
        check_generator(generator, self.device)


def check_count(name: str, value: int, *, minimum: int = 1) -> None:
    """Raise ValueError unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def split_count(count: int, held_out: float) -> int:
    """How many of `count` things are learned from, where a share `held_out` is kept: at least one, and not all."""
    return min(max(round(count * (1 - held_out)), 1), count - 1)


def check_strength(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a strength of distortion."""
    if not 0 <= value <= 4:
        raise ValueError(f"{name} must lie in [0, 4] (0 is off, 1 is usual), got {value!r}")


def check_generator(generator: torch.Generator, device: torch.device) -> None:
    """Raise ValueError unless `generator` draws on `device`."""
    if generator.device.type != device.type:
        raise ValueError(
            f"generator must live on the family's device {device}, got one on {generator.device}; "
            f"make it with torch.Generator(device={str(device)!r})"
        )


def sampler_speed(family: TaskFamily, meta_batch: int, *, seconds: float = 0.2) -> float:
    """Episodes a second that `family` samples, measured for about `seconds` with a generator of its own."""
    generator = torch.Generator(family.device).manual_seed(0)
    family.sample(meta_batch, generator)
    wait = torch.cuda.synchronize if family.device.type == "cuda" else lambda: None
    wait()
    start, drawn, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < seconds:
        family.sample(meta_batch, generator)
        wait()
        drawn += meta_batch
        elapsed = time.perf_counter() - start
    return drawn / elapsed


def check_enough(images: Sized, ways: int, described: str) -> None:
    """Raise ValueError where there are fewer images than a task needs."""
    if len(images) < ways:
        raise ValueError(
            f"{ways} ways need at least {ways} images, got {len(images)} ({described}); ask for fewer ways or "
            "give more images"
        )


def distinct_rows(count: int, tasks: int, wanted: int, generator: torch.Generator) -> torch.Tensor:
    """[tasks, wanted] numbers below `count`, no two alike in a task, uniformly.

    Random numbers are drawn until none repeats, instead of ordering all `count` for every task: a million images cost
    no more than a thousand. Where most are wanted, ordering them is cheaper.
    """
    device = generator.device
    if wanted**2 > count:
        return torch.rand(tasks, count, generator=generator, device=device).topk(wanted, dim=1).indices
    rows = torch.randint(count, (tasks, wanted), generator=generator, device=device)
    while bool((repeated := repeats(rows)).any()):
        fresh = torch.randint(count, (tasks, wanted), generator=generator, device=device)
        rows = torch.where(repeated[:, None], fresh, rows)
    return rows


def repeats(rows: torch.Tensor) -> torch.Tensor:
    """Which rows of [..., count] hold a number twice, [...]."""
    ordered = rows.sort(dim=-1).values
    return (ordered[..., 1:] == ordered[..., :-1]).any(dim=-1)
