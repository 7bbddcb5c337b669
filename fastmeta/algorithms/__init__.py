"""What you call: one file an algorithm."""

from .abml import ABML
from .anil import ANIL, BOIL
from .base import MetaLearner
from .learned_optimizer import Carry, LearnedOptimizer
from .lstm import LSTMMetaLearner
from .maml import FOMAML, MAML
from .maml_plus_plus import MAMLPlusPlus
from .meta_curvature import MetaCurvature
from .meta_sgd import MetaSGD
from .online import Online
from .outputs import Learners, MetaOutput
from .reptile import Reptile
from .sparse_maml import SparseMAML

__all__ = [
    "ABML", "ANIL", "BOIL", "FOMAML", "MAML", "Carry", "LSTMMetaLearner", "LearnedOptimizer", "Learners",
    "MAMLPlusPlus", "MetaCurvature", "MetaLearner", "MetaOutput", "MetaSGD", "Online", "Reptile", "SparseMAML",
]  # fmt: skip
