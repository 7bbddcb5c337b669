"""What you call: one file an algorithm."""

from .base import MetaLearner
from .maml import FOMAML, MAML
from .outputs import Learners, MetaOutput
from .policy import AdaptedPolicies, PolicyMAML, PolicyOutput
from .reptile import Reptile
from .surrogates import LinearBaseline

__all__ = [
    "FOMAML", "MAML", "AdaptedPolicies", "Learners", "LinearBaseline", "MetaLearner", "MetaOutput", "PolicyMAML",
    "PolicyOutput", "Reptile",
]  # fmt: skip
