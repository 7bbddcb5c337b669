"""What a task family is to the application."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks import Episodes, Images, TaskFamily
from fastmeta.train.run_config import Setting
from fastmeta.train.scores.evaluate import score

from .settings import TaskSettings

Loss = Callable[[Any, Any], Tensor]
"""(outputs, targets) of one task → scalar, a mean over samples."""


class Source(Protocol):
    """Data of a run."""

    def describe(self) -> str:
        """For a person."""
        ...

    def fingerprint(self) -> str:
        """The same for data that give the same episodes."""
        ...


S = TypeVar("S", bound=TaskSettings)
D = TypeVar("D", bound=Source | None)


class PresetSettings(NamedTuple):
    """A run by the names of its settings, those that are not the defaults, and where they come from."""

    settings: Mapping[str, Setting]
    source: str


@dataclass(frozen=True, kw_only=True)
class Family(ABC, Generic[S, D]):
    """A family of tasks as the commands see it; its file subclasses this for settings S and data D.

    Attributes:
        settings_type: S, which names the family and the networks that fit it.
        source_type: D: what `load` gives; `type(None)` for a family that makes its own tasks.
        summary: one line for a person.
        presets: runs by name; the one of the family's own name is what `fastmeta train` starts from.
        data: what `--data` names; empty where it takes none.
        data_optional: it makes its own data where none is given.
        loss: inner and outer.
        pretrain_loss: of plain pre-training, where it is another.
        batch_norm: its networks normalise batches, so that `bn_statistics` means something.
        official_runs: Omniglot's one-shot runs can be scored.
        clustered: tasks are made of clusters of the data, which a run computes first.
        evaluation: what is scored when training is over: the trained network alone; all starts, over adaptation steps;
            or the clusters that all starts find.
        picture: name of a file that `draw` makes of the trained network; empty where there is none.
        scored_after: further numbers of inner steps that a trained network is scored after.
        worst: the score of a learner that diverged; None: infinite error, or accuracy zero.
    """

    settings_type: type[S]
    source_type: type[D] | tuple[type, ...]
    summary: str
    presets: Mapping[str, PresetSettings]
    data: str = ""
    data_optional: bool = True
    loss: Loss = field(default=F.cross_entropy)
    pretrain_loss: Loss | None = None
    batch_norm: bool = False
    official_runs: bool = False
    clustered: bool = False
    evaluation: Literal["trained network", "starts", "clusters"] = "starts"
    picture: str = ""
    scored_after: tuple[int, ...] = ()
    worst: float | None = None

    # What a family must say. -----------------------------------------------------------------------------------------

    @abstractmethod
    def load(self, settings: S, paths: Sequence[str]) -> D:
        """Read the data. Without paths: made-up data, where `data_optional` says so."""

    @abstractmethod
    def shape(self, settings: S, source: D) -> tuple[int, ...]:
        """Of the data, as `build_model` takes it."""

    @abstractmethod
    def train(self, settings: S, source: D, device: torch.device) -> TaskFamily:
        """The tasks to learn from."""

    @abstractmethod
    def tests(self, settings: S, source: D, device: torch.device) -> Mapping[str, TaskFamily]:
        """What to score on, by title: the tasks of unseen data where the data is split, else fresh ones."""

    @abstractmethod
    def example(self, settings: S, device: torch.device) -> Episodes:
        """Two tasks of the run's shapes, of random numbers."""

    # What it may say. ------------------------------------------------------------------------------------------------

    def fit(self, settings: S, source: D) -> S:
        """The settings with what the network must know of the data."""
        return replace(settings, shape=self.shape(settings, source))

    def usual_shape(self, settings: S) -> tuple[int, ...]:
        """The shape where no data is at hand; that of the data which the family makes up."""
        return self.shape(settings, self.load(settings, ()))

    def pretrain(self, settings: S, source: D, device: torch.device) -> TaskFamily | None:
        """Tasks for plain pre-training; None where tasks share no labels, so that there is nothing to pre-train."""
        return None

    def probe(self, settings: S, source: D) -> tuple[Images, Images] | None:
        """Labelled images for a linear classifier of the features, and others to score it, or None."""
        return None

    def check_libraries(self) -> None:
        """Raise RuntimeError where a library is missing that training or evaluation needs."""

    def describe(self, source: D) -> str:
        """The data, for a person."""
        return self.summary if source is None else source.describe()

    def score(self, outputs: Any, targets: Tensor) -> Tensor:
        """One number a task, [T], of query outputs and targets."""
        return score(outputs, targets)

    def draw(self, learner: MetaLearner, tasks: TaskFamily, path: Path, steps: Sequence[int]) -> None:
        """Draw what the trained network does after these inner steps, where `picture` names a file.

        Raises:
            RuntimeError: without Matplotlib.
        """
        raise NotImplementedError

    # What follows. ---------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What `fastmeta train` calls it."""
        return self.settings_type.task

    @property
    def models(self) -> tuple[str, ...]:
        """Networks that fit it."""
        return self.settings_type.models

    @property
    def settings(self) -> frozenset[str]:
        """Names of the settings that it reads, of those that not every run has."""
        return frozenset(spec.name for spec in fields(self.settings_type)) | (
            {"bn_statistics"} if self.batch_norm else set()
        )

    @property
    def percent(self) -> bool:
        """Whether its score is an accuracy; else it is a mean squared error."""
        return self.loss is F.cross_entropy

    @property
    def metric(self) -> str:
        """What its score is."""
        return "accuracy" if self.percent else "mean squared error"

    def check_source(self, source: object) -> None:
        """Raise where `source` is no data of this family.

        Raises:
            ValueError: for none, where some is needed.
            TypeError: for other data.
        """
        if isinstance(source, self.source_type):
            return
        if source is None:
            raise ValueError(f"task {self.name} needs data: name with --data {self.data}")
        types = self.source_type if isinstance(self.source_type, tuple) else (self.source_type,)
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
        raise TypeError(f"task {self.name} takes {wanted} as its source, got {type(source).__name__}")


def random_images(ways: int, shots: int, queries: int, shape: tuple[int, ...], device: torch.device) -> Episodes:
    """Two tasks of classified images of random numbers."""
    n, samples = ways * shots, ways * (shots + queries)
    x = torch.rand(2, samples, *shape, device=device)
    y = torch.arange(samples, device=device).remainder(ways).expand(2, -1)
    return Episodes(x[:, :n], y[:, :n], x[:, n:], y[:, n:])
