"""Algorithms that learn how the inner loop steps: Meta-SGD, MAML++, Meta-Curvature, sparse-MAML."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from fastmeta.algorithms.maml_plus_plus import MAMLPlusPlus
from fastmeta.algorithms.meta_curvature import MetaCurvature
from fastmeta.algorithms.meta_sgd import MetaSGD
from fastmeta.algorithms.sparse_maml import SparseMAML
from fastmeta.models import per_step_batch_norm
from fastmeta.train.families.base import PresetSettings
from fastmeta.train.families.settings import TaskSettings

from .base import Learned, Method, Published, Setting


@dataclass(frozen=True, kw_only=True)
class MetaSGDSettings(Learned):
    """Settings of `meta-sgd`."""

    lowest_rate: float = field(default=0.005, metadata={"help": "learned step sizes start uniformly above this"})
    highest_rate: float = field(default=0.1, metadata={"help": "and below this; the same as the lowest: all equal"})


META_SGD = Method(
    kind=MetaSGD,
    settings_type=MetaSGDSettings,
    make=lambda model, own, common: MetaSGD(model, lr=(own.lowest_rate, own.highest_rate), **common.options),
    presets={
        "omniglot": PresetSettings(
            {"inner_steps": 1, "eval_steps": 1},
            "Li et al. 2017: one inner step, step sizes from (0.005, 0.1); the rest is fastmeta's own, for a first "
            "look in minutes.",
        ),
        "sinusoid": PresetSettings(
            {"inner_steps": 1, "eval_steps": 1},
            "Li et al. 2017: one inner step, step sizes from (0.005, 0.1); the rest is that of sinusoid. Step sizes "
            "learned for one step diverge over many.",
        ),
    },
    published={
        Setting("omniglot", 5, 1): Published("99.53 ± 0.26", "Li et al. 2017, as later papers quote it"),
        Setting("omniglot", 5, 5): Published("99.93 ± 0.09", "Li et al. 2017, as later papers quote it"),
        Setting("sinusoid", 0, 5): Published("0.90 ± 0.16", "Li et al. 2017, as later papers quote it"),
    },
)


@dataclass(frozen=True, kw_only=True)
class MAMLPlusPlusSettings(Learned):
    """Settings of `maml++`: its parts, each switched apart."""

    multi_step_epochs: int = field(default=10, metadata={"help": "epochs of the multi-step loss; 0: without it"})
    per_step_rates: bool = field(default=True, metadata={"help": "learn a step size for every tensor and inner step"})
    first_order_epochs: int = field(default=0, metadata={"help": "epochs of first order, before the exact gradient"})
    per_step_affine: bool = field(default=True, metadata={"help": "batch norm's γ and β for every inner step"})
    epoch_length: int = field(default=100, metadata={"help": "meta-steps of an epoch"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learned_lr is not None and not self.per_step_rates:
            raise ValueError(
                f"learned_lr={self.learned_lr:g} is of learned step sizes, and per_step_rates is off; leave one out"
            )


def _per_step(model: nn.Module, own: MAMLPlusPlusSettings, _: TaskSettings) -> nn.Module:
    """Batch norms with weights for every step, as many as any run of the command line may take."""
    return per_step_batch_norm(model, _MOST_STEPS) if own.per_step_affine and _has_batch_norm(model) else model


_MOST_STEPS = 20
"""Inner steps that per-step batch norm has room for; those that are never taken cost nothing but their memory."""


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


MAML_PLUS_PLUS = Method(
    kind=MAMLPlusPlus,
    settings_type=MAMLPlusPlusSettings,
    make=lambda model, own, common: MAMLPlusPlus(
        model, lr=common.lr, multi_step_epochs=own.multi_step_epochs, per_step_rates=own.per_step_rates,
        first_order_epochs=own.first_order_epochs, epoch_length=own.epoch_length,
        per_step_affine=own.per_step_affine and any(hasattr(m, "inner_step") for m in model.modules()),
        **common.options,
    ),
    network=_per_step,
    longer=False,
    presets={
        "omniglot": PresetSettings(
            {"inner_lr": 0.1, "inner_steps": 5, "eval_steps": 5},
            "Antoniou et al. 2019 and the released settings: five steps of 0.1, meta-batch 8, ten epochs of multi-step "
            "loss, a cosine. There 500 epochs of 100 iterations, and the mean of the five best models at test.",
        ),
        "sinusoid": PresetSettings(
            {"inner_lr": 0.01, "inner_steps": 5, "eval_steps": 5},
            "fastmeta's own: five steps, else as sinusoid; ten epochs of multi-step loss as for Omniglot.",
        ),
    },
    published={
        Setting("omniglot", 5, 1): Published("99.47", "Antoniou et al. 2019, as later papers quote it (an ensemble)"),
        Setting("omniglot", 5, 5): Published("99.93", "Antoniou et al. 2019, as later papers quote it (an ensemble)"),
    },
)  # fmt: skip

META_CURVATURE = Method(
    kind=MetaCurvature,
    settings_type=Learned,
    make=lambda model, own, common: MetaCurvature(model, lr=common.lr, **common.options),
    presets={
        "omniglot": PresetSettings(
            {"inner_lr": 2.0, "inner_steps": 1, "eval_steps": 1},
            "Park & Oliva 2019, the authors' code: one step of 0.4, which is 2.0 for losses that are means over five "
            "ways; there meta-batch 32 and 60,000 iterations.",
        ),
        "sinusoid": PresetSettings({"inner_steps": 1}, "fastmeta's own: as sinusoid."),
    },
    published={
        Setting("omniglot", 5, 1): Published("99.97", "Park & Oliva 2019 (MC2+), as leaderboards list it"),
        Setting("omniglot", 5, 5): Published("99.89", "Park & Oliva 2019 (MC2+), as leaderboards list it"),
    },
)

SPARSE_MAML = Method(
    kind=SparseMAML,
    settings_type=Learned,
    make=lambda model, own, common: SparseMAML(model, lr=common.lr, **common.options),
    presets={
        "omniglot": PresetSettings({"learned_lr": 7.5e-3}, "fastmeta's own: as omniglot; step size of the masks as the "
                                   "authors' for theirs."),
        "sinusoid": PresetSettings({"learned_lr": 7.5e-3}, "fastmeta's own: as sinusoid."),
    },
)  # fmt: skip
