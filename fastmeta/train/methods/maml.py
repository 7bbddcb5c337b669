"""MAML, first-order MAML and Reptile, which have no settings of their own."""

from __future__ import annotations

from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import FOMAML, MAML
from fastmeta.algorithms.reptile import Reptile

from .base import Method, MethodSettings, Published, Setting


def plain(kind: type[MetaLearner], published: dict[Setting, Published]) -> Method[MethodSettings]:
    """An algorithm that takes what all take."""
    return Method(
        kind=kind,
        published=published,
        make=lambda model, own, common: kind(model, inner_optimizer=common.rule, **common.options),
        settings_type=MethodSettings,
    )


_QUOTED = "as later papers quote it"

MAML_METHOD = plain(
    MAML,
    {
        Setting("omniglot", 5, 1): Published("98.7 ± 0.4", f"Finn et al. 2017, {_QUOTED}"),
        Setting("omniglot", 5, 5): Published("99.9 ± 0.1", f"Finn et al. 2017, {_QUOTED}"),
        Setting("sinusoid", 0, 5): Published("1.13 ± 0.18", "Li et al. 2017, as later papers quote it"),
    },
)
FOMAML_METHOD = plain(
    FOMAML,
    {
        Setting("omniglot", 5, 1): Published("98.3 ± 0.5", f"Nichol et al. 2018, {_QUOTED}"),
        Setting("omniglot", 5, 5): Published("99.2 ± 0.2", f"Nichol et al. 2018, {_QUOTED}"),
    },
)
REPTILE_METHOD = plain(
    Reptile,
    {
        Setting("omniglot", 5, 1): Published("97.68 ± 0.04", f"Nichol et al. 2018 (transductive), {_QUOTED}"),
        Setting("omniglot", 5, 5): Published("99.48 ± 0.06", f"Nichol et al. 2018 (transductive), {_QUOTED}"),
    },
)
