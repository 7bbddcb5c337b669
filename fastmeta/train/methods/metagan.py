"""MetaGAN."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from fastmeta.algorithms.metagan import MetaGAN, MetaGANArguments
from fastmeta.models import ImageGenerator, head_of
from fastmeta.tasks import TaskFamily
from fastmeta.tasks.derived import PartlyLabelled
from fastmeta.train.families.base import PresetSettings
from fastmeta.train.families.settings import TaskSettings

from .base import Common, Method, MethodSettings


@dataclass(frozen=True, kw_only=True)
class MetaGANSettings(MethodSettings):
    """Settings of `metagan`."""

    noise: int = field(default=64, metadata={"help": "width of the generator's noise"})
    unlabelled: float = field(
        default=0.0, metadata={"help": "share of a training task's support samples without label"}
    )
    unlabelled_tasks: float = field(default=0.0, metadata={"help": "share of training tasks without any label"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("unlabelled", "unlabelled_tasks"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}")


def _with_fake(model: nn.Module, _: MetaGANSettings, __: TaskSettings) -> nn.Module:
    """A class more, which is "fake"."""
    head = head_of(model)
    setattr(model, list(model._modules)[-1], nn.Linear(head.in_features, head.out_features + 1))
    return model


def _make(model: nn.Module, own: MetaGANSettings, common: Common) -> MetaGAN:
    channels, height, width = common.tasks.shape or (1, 28, 28)
    generator = ImageGenerator(own.noise + math.prod((channels, height, width)), shape=(channels, height, width))
    generator.to(next(model.parameters()).device)
    return MetaGAN(
        model, generator, ways=common.ways, noise=own.noise, inner_optimizer=common.rule,
        **common.chosen(MetaGANArguments),
    )  # fmt: skip


def _episodes(family: TaskFamily, own: MetaGANSettings, _: TaskSettings) -> TaskFamily:
    if not own.unlabelled and not own.unlabelled_tasks:
        return family
    return PartlyLabelled(family, unlabelled=own.unlabelled, unlabelled_tasks=own.unlabelled_tasks)


METAGAN = Method(
    kind=MetaGAN,
    settings_type=MetaGANSettings,
    make=_make,
    network=_with_fake,
    episodes=_episodes,
    bn_statistics=False,
    classifies=True,
    padded=False,
    presets={
        "omniglot": PresetSettings(
            {"inner_lr": 0.4, "inner_steps": 3, "eval_steps": 3},
            "Zhang et al. 2018 print no table of settings; Adam of 1e-3 as in public re-implementations, inner steps "
            "as omniglot.",
        ),
    },
)
