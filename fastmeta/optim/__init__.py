"""Inner rules and learned rates: one file each."""

from .adam import Adam
from .base import InnerRule, Rule
from .rates import PerLayerPerStep, PerParameter, Rates
from .sgd import SGD

__all__ = ["SGD", "Adam", "InnerRule", "PerLayerPerStep", "PerParameter", "Rates", "Rule"]
