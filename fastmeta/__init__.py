"""fastmeta: meta-learning over all tasks at once."""

from fastmeta.algorithms.abml import ABML
from fastmeta.algorithms.anil import ANIL, BOIL
from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.cavia import CAVIA
from fastmeta.algorithms.distillation import Distillation, SupportSet
from fastmeta.algorithms.features import FeatureLearner, TaskClassifiers
from fastmeta.algorithms.imaml import IMAML
from fastmeta.algorithms.learned_optimizer import LearnedOptimizer
from fastmeta.algorithms.lstm import LSTMMetaLearner
from fastmeta.algorithms.maml import FOMAML, MAML
from fastmeta.algorithms.maml_plus_plus import MAMLPlusPlus
from fastmeta.algorithms.meta_curvature import MetaCurvature
from fastmeta.algorithms.meta_sgd import MetaSGD
from fastmeta.algorithms.metagan import MetaGAN, MetaGANOutput
from fastmeta.algorithms.online import Online
from fastmeta.algorithms.outputs import Learners, MetaOutput
from fastmeta.algorithms.policy import PolicyMAML
from fastmeta.algorithms.proto_maml import ProtoMAML
from fastmeta.algorithms.protonet import ProtoNet
from fastmeta.algorithms.reptile import Reptile
from fastmeta.algorithms.ridge import R2D2, MetaOptNetRR
from fastmeta.algorithms.sparse_maml import SparseMAML
from fastmeta.algorithms.weighting import weighted
from fastmeta.optim.adam import Adam
from fastmeta.optim.rates import PerLayerPerStep, PerParameter
from fastmeta.optim.sgd import SGD
from fastmeta.trajectories import Trajectories

__all__ = [
    "ABML", "ANIL", "BOIL", "CAVIA", "FOMAML", "IMAML", "MAML", "R2D2", "SGD", "Adam", "Distillation",
    "FeatureLearner", "LSTMMetaLearner", "LearnedOptimizer", "Learners", "MAMLPlusPlus", "MetaCurvature", "MetaGAN",
    "MetaGANOutput", "MetaLearner", "MetaOptNetRR", "MetaOutput", "MetaSGD", "Online", "PerLayerPerStep",
    "PerParameter", "PolicyMAML", "ProtoMAML", "ProtoNet", "Reptile", "SparseMAML", "SupportSet", "TaskClassifiers",
    "Trajectories", "weighted",
]  # fmt: skip
__version__ = "0.1.0"
