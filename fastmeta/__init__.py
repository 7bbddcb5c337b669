"""fastmeta: meta-learning over all tasks at once."""

from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import FOMAML, MAML
from fastmeta.algorithms.outputs import Learners, MetaOutput
from fastmeta.algorithms.policy import PolicyMAML
from fastmeta.algorithms.reptile import Reptile
from fastmeta.optim.adam import Adam
from fastmeta.optim.rates import PerLayerPerStep, PerParameter
from fastmeta.optim.sgd import SGD
from fastmeta.trajectories import Trajectories

__all__ = [
    "FOMAML", "MAML", "SGD", "Adam", "Learners", "MetaLearner", "MetaOutput", "PerLayerPerStep", "PerParameter",
    "PolicyMAML", "Reptile", "Trajectories",
]  # fmt: skip
__version__ = "0.1.0"
