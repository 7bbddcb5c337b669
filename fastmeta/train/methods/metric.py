"""Algorithms on an encoder's features: prototypes, ridge regression, and MAML from prototypes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from fastmeta.algorithms.features import FeatureArguments
from fastmeta.algorithms.proto_maml import ProtoMAML
from fastmeta.algorithms.protonet import ProtoNet
from fastmeta.algorithms.ridge import R2D2, MetaOptNetRR
from fastmeta.models import head_of
from fastmeta.train.families.base import PresetSettings
from fastmeta.train.families.settings import TaskSettings

from .base import Common, Learned, Method, MethodSettings, Published, Setting


def without_head(model: nn.Module, _: Any = None, __: TaskSettings | None = None) -> nn.Module:
    """The network without its last linear layer: an encoder."""
    head_of(model)  # raises where there is none
    name = list(model._modules)[-1]
    if isinstance(model, nn.Sequential):
        return model[:-1]
    encoder = copy.copy(model)
    encoder._modules = {**model._modules, name: nn.Identity()}
    return encoder


def _options(common: Common) -> FeatureArguments:
    return {
        **common.chosen(FeatureArguments),
        "outer_loss": common.options.get("inner_loss", nn.functional.cross_entropy),
    }  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, kw_only=True)
class ProtoNetSettings(MethodSettings):
    """Settings of `protonet`."""

    distance: Literal["squared", "euclidean", "cosine"] = field(
        default="squared", metadata={"help": "between features", "choices": ("squared", "euclidean", "cosine")}
    )


PROTONET = Method(
    kind=ProtoNet,
    settings_type=ProtoNetSettings,
    make=lambda model, own, common: ProtoNet(model, distance=own.distance, ways=common.ways, **_options(common)),
    network=without_head,
    inner_loop=False,
    bn_statistics=False,
    classifies=True,
    presets={
        "omniglot": PresetSettings(
            {},
            "Snell et al. 2017: 5 queries a class, Adam of 1e-3. There episodes of 60 ways in training, as one batch a "
            "meta-step, and the step size halved every 2,000.",
        ),
    },
    published={
        Setting("omniglot", 5, 1): Published("98.8", "Snell et al. 2017, table 1"),
        Setting("omniglot", 5, 5): Published("99.7", "Snell et al. 2017, table 1"),
    },
)

R2D2_METHOD = Method(
    kind=R2D2,
    settings_type=Learned,
    make=lambda model, own, common: R2D2(model, scale=10.0, ways=common.ways, **_options(common)),
    network=without_head,
    inner_loop=False,
    bn_statistics=False,
    classifies=True,
    presets={
        "omniglot": PresetSettings(
            {"model": "conv4-flat"},
            "Bertinetto et al. 2019, the released settings for Omniglot: λ = 50, scale 10; there 60 ways in training, "
            "and Adam of 5e-3, halved every 2,000 episodes, for 1e-3 here.",
        ),
    },
)

METAOPTNET = Method(
    kind=MetaOptNetRR,
    settings_type=Learned,
    make=lambda model, own, common: MetaOptNetRR(model, ways=common.ways, **_options(common)),
    network=without_head,
    inner_loop=False,
    bn_statistics=False,
    classifies=True,
    presets={
        "omniglot": PresetSettings(
            {"model": "conv4-flat"}, "Lee et al. 2019: λ = 50 and a learned scale; the rest is fastmeta's own."
        ),
    },
)


def _proto_maml(model: nn.Module, _: MethodSettings, common: Common) -> ProtoMAML:
    p = next(model.parameters())
    with torch.no_grad():
        x = torch.zeros(2, *(common.tasks.shape or (1, 28, 28)), device=p.device, dtype=p.dtype)
        features = model(x).flatten(1).shape[1]
    return ProtoMAML(model, ways=common.ways, features=features, inner_optimizer=common.rule, **common.options)


PROTO_MAML = Method(
    kind=ProtoMAML,
    settings_type=MethodSettings,
    make=_proto_maml,
    network=without_head,
    classifies=True,
    presets={
        "omniglot": PresetSettings(
            {"inner_lr": 0.0199, "inner_steps": 1, "eval_steps": 6, "first_order": True},
            "Triantafillou et al. 2020, the released settings for all sources: first order, one step of 0.0199 in "
            "training and five more in evaluation.",
        ),
    },
)
