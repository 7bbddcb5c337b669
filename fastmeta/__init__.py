"""fastmeta: meta-learning over all tasks at once."""

from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.cavia import CAVIA
from fastmeta.algorithms.distillation import Distillation, SupportSet
from fastmeta.algorithms.imaml import IMAML
from fastmeta.algorithms.maml import FOMAML, MAML
from fastmeta.algorithms.outputs import Learners, MetaOutput
from fastmeta.algorithms.reptile import Reptile
from fastmeta.algorithms.weighting import weighted
from fastmeta.optim.adam import Adam
from fastmeta.optim.rates import PerLayerPerStep, PerParameter
from fastmeta.optim.sgd import SGD

__all__ = [
    "CAVIA", "FOMAML", "IMAML", "MAML", "SGD", "Adam", "Distillation", "Learners", "MetaLearner", "MetaOutput",
    "PerLayerPerStep", "PerParameter", "Reptile", "SupportSet", "weighted",
]  # fmt: skip
__version__ = "0.1.0"
