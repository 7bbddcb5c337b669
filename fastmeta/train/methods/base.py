"""What an algorithm is to the application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, NamedTuple, TypeVar, get_type_hints

from torch import nn

from fastmeta.algorithms.arguments import WithoutRule
from fastmeta.algorithms.base import MetaLearner
from fastmeta.optim.base import InnerRule
from fastmeta.tasks import TaskFamily
from fastmeta.train.families.base import PresetSettings
from fastmeta.train.families.settings import TaskSettings
from fastmeta.train.run_config import check_fields


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What an algorithm reads beside what all of them do; its file subclasses this for settings of its own."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Learned(MethodSettings):
    """An algorithm that learns something beside the network."""

    learned_lr: float | None = field(
        default=None,
        metadata={
            "help": "outer step size of what is learned beside the network (rates, ...); 0: as --outer-lr",
            "automatic": True,
        },
    )


S = TypeVar("S", bound=MethodSettings)


class Common(NamedTuple):
    """What every algorithm is made of.

    Attributes:
        rule: the inner optimiser that the run asks for.
        lr: its step size alone.
        options: those of `fastmeta.MetaLearner`, but for the rule.
        tasks: the run's settings of tasks.
    """

    rule: InnerRule
    lr: float
    options: WithoutRule
    tasks: TaskSettings

    @property
    def ways(self) -> int:
        """Classes of a task."""
        return getattr(self.tasks, "ways", 0)

    def chosen(self, kind: type) -> dict[str, Any]:
        """Those of `options` that an algorithm takes, by the TypedDict of its arguments."""
        return {name: value for name, value in self.options.items() if name in get_type_hints(kind)}


class Published(NamedTuple):
    """A figure of a paper: what full training on a GPU gives.

    Attributes:
        score: accuracy in percent, or mean squared error, as printed.
        source: where it was read.
    """

    score: str
    source: str


class Setting(NamedTuple):
    """What tasks a published figure is of; `ways` is 0 where there are no classes."""

    task: str
    ways: int
    shots: int


@dataclass(frozen=True, kw_only=True)
class Method(Generic[S]):
    """An algorithm as the commands see it.

    Attributes:
        kind: its class.
        make: (network, own settings, what all are made of) → the learner.
        settings_type: S.
        network: (the run's network, own settings, those of the tasks) → the one that the algorithm takes.
        episodes: (tasks to train on, own settings, those of the tasks) → what the algorithm trains on.
        inner_loop: tasks are adapted to by inner steps; else their number means nothing.
        bn_statistics: it offers the choice of this name.
        classifies: it needs tasks of classes.
        padded: tasks may be of different sizes, so that some samples are padding without a label.
        longer: more inner steps can be taken in evaluation than in training.
        presets: by task family: what differs from the family's own preset, and where it comes from.
        published: figures to print beside measured ones.
    """

    kind: type[MetaLearner]
    make: Callable[[nn.Module, S, Common], MetaLearner]
    settings_type: type[S]
    network: Callable[[nn.Module, S, TaskSettings], nn.Module] = lambda model, own, tasks: model
    episodes: Callable[[TaskFamily, S, TaskSettings], TaskFamily] = lambda family, own, tasks: family
    inner_loop: bool = True
    bn_statistics: bool = True
    classifies: bool = False
    padded: bool = True
    longer: bool = True
    presets: Mapping[str, PresetSettings] = field(default_factory=dict)
    published: Mapping[Setting, Published] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line for a person."""
        return " ".join((self.kind.__doc__ or "").split("\n\n")[0].split())

    @property
    def settings(self) -> frozenset[str]:
        """Names of the settings that it reads, of those that not every run has."""
        return frozenset(spec.name for spec in fields(self.settings_type))


AnyMethod = Method[Any]
