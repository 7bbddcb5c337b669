"""What a task family is to the application."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch.nn import functional as F

from fastmeta.program.losses import Loss
from fastmeta.tasks import Images, TaskFamily

from .builders import Source

if TYPE_CHECKING:
    from .settings import TaskConfig


class _Build(Protocol):
    def __call__(self, part: TaskConfig, source: Source | None, device: torch.device, /) -> TaskFamily: ...


class _Tests(Protocol):
    def __call__(
        self, part: TaskConfig, source: Source | None, device: torch.device, /
    ) -> Mapping[str, TaskFamily]: ...


@dataclass(frozen=True)
class Family:
    """A family of tasks as the commands see it.

    Attributes:
        summary: one line for a person.
        models: networks that fit it.
        settings: what of `TaskConfig` it reads, beside `shots` and `queries`.
        data: what `--data` names; empty where it takes none.
        load: reads the data. Without paths: made-up data, where `optional` says so.
        shape: of the data, as `build_model` takes it.
        train: the tasks to learn from.
        tests: what to score on, by title: the tasks of unseen data where the data is split, else fresh ones.
        probe: labelled images for a linear classifier of the features, and others to score it, or None.
        pretrain: tasks for plain pre-training; None where tasks share no labels, so that there is nothing to pre-train.
        loss: inner and outer.
        pretrain_loss: of plain pre-training, where it is another.
        optional: it makes its own data where none is given.
        report: "scores" prints means; "curves" compares starts over adaptation steps; "clusters" scores clusters.
    """

    summary: str
    models: tuple[str, ...]
    settings: frozenset[str]
    data: str
    load: Callable[[TaskConfig, Sequence[str]], Source | None]
    shape: Callable[[TaskConfig, Source | None], tuple[int, ...]]
    train: _Build
    tests: _Tests
    pretrain: _Build | None = None
    probe: Callable[[TaskConfig, Source | None], tuple[Images, Images] | None] | None = None
    loss: Loss = F.cross_entropy
    pretrain_loss: Loss | None = None
    optional: bool = True
    report: Literal["scores", "curves", "clusters"] = "curves"

    @property
    def percent(self) -> bool:
        """Whether its score is an accuracy; else it is a mean squared error."""
        return self.loss is F.cross_entropy
