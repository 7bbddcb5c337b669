"""Inner rules and learned rates: one file each."""

from .adam import Adam
from .base import InnerRule, Rule
from .curvature import Curvature, Curvatures
from .learned import LearnedUpdate
from .lstm import LSTMRule
from .rates import Masked, PerLayerPerStep, PerParameter, Rates
from .sgd import SGD

__all__ = [
    "SGD", "Adam", "Curvature", "Curvatures", "InnerRule", "LSTMRule", "LearnedUpdate", "Masked", "PerLayerPerStep",
    "PerParameter", "Rates", "Rule",
]  # fmt: skip
