"""iMAML."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastmeta.algorithms.imaml import IMAML
from fastmeta.train.families.base import PresetSettings

from .base import Method, MethodSettings, Published, Setting


@dataclass(frozen=True, kw_only=True)
class IMAMLSettings(MethodSettings):
    """Settings of `imaml`."""

    strength: float = field(default=2.0, metadata={"help": "of the proximal term, the paper's λ"})
    cg_steps: int = field(default=5, metadata={"help": "of conjugate gradients"})


IMAML_METHOD = Method(
    kind=IMAML,
    settings_type=IMAMLSettings,
    make=lambda model, own, common: IMAML(
        model, strength=own.strength, cg_steps=own.cg_steps, inner_optimizer=common.rule, **common.options
    ),
    presets={
        "omniglot": PresetSettings(
            {"inner_lr": 0.1, "inner_steps": 16, "eval_steps": 16},
            "Rajeswaran et al. 2019: λ = 2, 16 steps of gradient descent, 5 of conjugate gradients; the inner step "
            "size is fastmeta's own.",
        ),
        "sinusoid": PresetSettings(
            {"inner_lr": 0.01, "inner_steps": 10, "eval_steps": 10, "strength": 0.5},
            "fastmeta's own: ten steps, a weaker proximal term.",
        ),
    },
    published={
        Setting("omniglot", 5, 1): Published("99.16 ± 0.35", "Rajeswaran et al. 2019, table 1 (gradient descent)"),
        Setting("omniglot", 5, 5): Published("99.67 ± 0.12", "Rajeswaran et al. 2019, table 1 (gradient descent)"),
    },
)
