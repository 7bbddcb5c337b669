"""Amortised Bayesian meta-learning."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastmeta.algorithms.abml import ABML
from fastmeta.models import Gaussian
from fastmeta.train.families.base import PresetSettings

from .base import Method, MethodSettings


@dataclass(frozen=True, kw_only=True)
class ABMLSettings(MethodSettings):
    """Settings of `abml`."""

    kl_weight: float = field(default=0.1, metadata={"help": "of the divergence from the prior"})
    samples: int = field(default=2, metadata={"help": "draws of the weights in an inner step"})
    query_samples: int = field(default=5, metadata={"help": "draws in the outer loss and in predictions"})


ABML_METHOD = Method(
    kind=ABML,
    settings_type=ABMLSettings,
    make=lambda model, own, common: ABML(
        model, kl_weight=own.kl_weight, samples=own.samples, query_samples=own.query_samples,
        inner_optimizer=common.rule, **common.options,
    ),
    network=lambda model, own, tasks: Gaussian(model),
    bn_statistics=False,
    presets={
        "omniglot": PresetSettings(
            {"inner_lr": 0.4, "inner_steps": 3, "eval_steps": 3, "kl_weight": 1e-4},
            "Public re-implementations of Ravi & Beatson 2019: 2 draws in the inner loop, 5 outside, a divergence of "
            "weight 1e-4; inner steps as omniglot.",
        ),
        "sinusoid": PresetSettings({"kl_weight": 1e-4}, "fastmeta's own: as sinusoid, a divergence of weight 1e-4."),
    },
)  # fmt: skip
