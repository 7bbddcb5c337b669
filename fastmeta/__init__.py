"""fastmeta: meta-learning over all tasks at once."""

from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.features import FeatureLearner, TaskClassifiers
from fastmeta.algorithms.maml import FOMAML, MAML
from fastmeta.algorithms.metagan import MetaGAN, MetaGANOutput
from fastmeta.algorithms.outputs import Learners, MetaOutput
from fastmeta.algorithms.proto_maml import ProtoMAML
from fastmeta.algorithms.protonet import ProtoNet
from fastmeta.algorithms.reptile import Reptile
from fastmeta.algorithms.ridge import R2D2, MetaOptNetRR
from fastmeta.optim.adam import Adam
from fastmeta.optim.rates import PerLayerPerStep, PerParameter
from fastmeta.optim.sgd import SGD

__all__ = [
    "FOMAML", "MAML", "R2D2", "SGD", "Adam", "FeatureLearner", "Learners", "MetaGAN", "MetaGANOutput", "MetaLearner",
    "MetaOptNetRR", "MetaOutput", "PerLayerPerStep", "PerParameter", "ProtoMAML", "ProtoNet", "Reptile",
    "TaskClassifiers",
]  # fmt: skip
__version__ = "0.1.0"
