"""What you call: one file an algorithm."""

from .base import MetaLearner
from .learned_optimizer import Carry, LearnedOptimizer
from .lstm import LSTMMetaLearner
from .maml import FOMAML, MAML
from .meta_curvature import MetaCurvature
from .meta_sgd import MetaSGD
from .outputs import Learners, MetaOutput
from .reptile import Reptile
from .sparse_maml import SparseMAML

__all__ = [
    "FOMAML", "MAML", "Carry", "LSTMMetaLearner", "LearnedOptimizer", "Learners", "MetaCurvature", "MetaLearner",
    "MetaOutput", "MetaSGD", "Reptile", "SparseMAML",
]  # fmt: skip
