"""fastmeta: meta-learning over all tasks at once."""

from fastmeta.algorithms.abml import ABML
from fastmeta.algorithms.anil import ANIL, BOIL
from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.learned_optimizer import LearnedOptimizer
from fastmeta.algorithms.lstm import LSTMMetaLearner
from fastmeta.algorithms.maml import FOMAML, MAML
from fastmeta.algorithms.maml_plus_plus import MAMLPlusPlus
from fastmeta.algorithms.meta_curvature import MetaCurvature
from fastmeta.algorithms.meta_sgd import MetaSGD
from fastmeta.algorithms.online import Online
from fastmeta.algorithms.outputs import Learners, MetaOutput
from fastmeta.algorithms.reptile import Reptile
from fastmeta.algorithms.sparse_maml import SparseMAML
from fastmeta.optim.adam import Adam
from fastmeta.optim.rates import PerLayerPerStep, PerParameter
from fastmeta.optim.sgd import SGD

__all__ = [
    "ABML", "ANIL", "BOIL", "FOMAML", "MAML", "SGD", "Adam", "LSTMMetaLearner", "LearnedOptimizer", "Learners",
    "MAMLPlusPlus", "MetaCurvature", "MetaLearner", "MetaOutput", "MetaSGD", "Online", "PerLayerPerStep",
    "PerParameter", "Reptile", "SparseMAML",
]  # fmt: skip
__version__ = "0.1.0"
