"""Algorithms that move a part of the network: ANIL its head, BOIL its body, CAVIA a context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from torch import nn

from fastmeta.algorithms.anil import ANIL, BOIL
from fastmeta.algorithms.cavia import CAVIA
from fastmeta.models import ContextMLP, FilmConv4
from fastmeta.train.families.base import PresetSettings
from fastmeta.train.families.settings import ClassSettings, TaskSettings

from .base import Method, MethodSettings

ANIL_METHOD = Method(
    kind=ANIL,
    settings_type=MethodSettings,
    make=lambda model, own, common: ANIL(model, inner_optimizer=common.rule, **common.options),
    presets={
        "omniglot": PresetSettings(
            {"inner_lr": 0.4, "inner_steps": 5, "eval_steps": 5},
            "Raghu et al. 2020: the head alone, five steps here; the rest is fastmeta's own, for a first look in "
            "minutes.",
        ),
        "sinusoid": PresetSettings({"inner_steps": 5}, "fastmeta's own: five steps, else as sinusoid."),
    },
)

BOIL_METHOD = Method(
    kind=BOIL,
    settings_type=MethodSettings,
    make=lambda model, own, common: BOIL(model, inner_optimizer=common.rule, **common.options),
    presets={
        "omniglot": PresetSettings(
            {"inner_lr": 0.5, "inner_steps": 1, "eval_steps": 1, "meta_batch": 4},
            "Oh et al. 2021, the authors' code: one step of 0.5, meta-batch 4, outer step size 1e-3; there 30,000 "
            "iterations.",
        ),
        "sinusoid": PresetSettings({}, "fastmeta's own: as sinusoid."),
    },
)


@dataclass(frozen=True, kw_only=True)
class CAVIASettings(MethodSettings):
    """Settings of `cavia`."""

    context: int | None = field(
        default=None,
        metadata={"help": "numbers of a task's context; 0: 5 of a perceptron, 100 of an image", "automatic": True},
    )


def _context_of(model: nn.Module) -> str:
    """The name of a network's context or latent code; empty where it has none."""
    own = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    return next((name for name in ("context", "latent") if name in own), "")


def _with_context(model: nn.Module, own: CAVIASettings, tasks: TaskSettings) -> nn.Module:
    """The run's own network where it has a context; else the authors'."""
    if _context_of(model):
        return model
    if not tasks.shape:
        return ContextMLP(1, 1, context=own.context or 5)
    shape = cast("tuple[int, int, int]", tasks.shape)
    images = cast(ClassSettings, tasks)
    return FilmConv4(images.ways, channels=images.channels, context=own.context or 100, shape=shape)


CAVIA_METHOD = Method(
    kind=CAVIA,
    settings_type=CAVIASettings,
    make=lambda model, own, common: CAVIA(
        model, context=_context_of(model), inner_optimizer=common.rule, **common.options
    ),
    network=_with_context,
    presets={
        "omniglot": PresetSettings(
            {"inner_lr": 1.0, "inner_steps": 2, "eval_steps": 2},
            "Zintgraf et al. 2019, the authors' code for miniImageNet: 100 context numbers behind the third "
            "convolution, two steps of 1.0; the rest is fastmeta's own.",
        ),
        "sinusoid": PresetSettings(
            {"inner_lr": 1.0, "inner_steps": 1},
            "Zintgraf et al. 2019, the authors' code: 5 context numbers, a perceptron of 40 and 40, 25 tasks, one step "
            "of 1.0; there 50,000 iterations.",
        ),
    },
)
