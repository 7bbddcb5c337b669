"""fastmeta: meta-learning over all tasks at once."""

from fastmeta.algorithms.abml import ABML
from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import FOMAML, MAML
from fastmeta.algorithms.maml_plus_plus import MAMLPlusPlus
from fastmeta.algorithms.online import Online
from fastmeta.algorithms.outputs import Learners, MetaOutput
from fastmeta.algorithms.reptile import Reptile
from fastmeta.optim.adam import Adam
from fastmeta.optim.rates import PerLayerPerStep, PerParameter
from fastmeta.optim.sgd import SGD

__all__ = [
    "ABML", "FOMAML", "MAML", "SGD", "Adam", "Learners", "MAMLPlusPlus", "MetaLearner", "MetaOutput", "Online",
    "PerLayerPerStep", "PerParameter", "Reptile",
]  # fmt: skip
__version__ = "0.1.0"
