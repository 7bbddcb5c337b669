"""MAML, first-order MAML and Reptile, which have no settings of their own."""

from __future__ import annotations

from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import FOMAML, MAML
from fastmeta.algorithms.reptile import Reptile

from .base import Method, MethodSettings


def plain(kind: type[MetaLearner]) -> Method[MethodSettings]:
    """An algorithm that takes what all take."""
    return Method(
        kind=kind,
        make=lambda model, own, common: kind(model, inner_optimizer=common.rule, **common.options),
        settings_type=MethodSettings,
    )


MAML_METHOD, FOMAML_METHOD, REPTILE_METHOD = plain(MAML), plain(FOMAML), plain(Reptile)
