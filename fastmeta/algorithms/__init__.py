"""What you call: one file an algorithm."""

from .abml import ABML
from .anil import ANIL, BOIL
from .base import MetaLearner
from .features import FeatureLearner, TaskClassifiers
from .learned_optimizer import Carry, LearnedOptimizer
from .lstm import LSTMMetaLearner
from .maml import FOMAML, MAML
from .maml_plus_plus import MAMLPlusPlus
from .meta_curvature import MetaCurvature
from .meta_sgd import MetaSGD
from .metagan import MetaGAN, MetaGANOutput
from .online import Online
from .outputs import Learners, MetaOutput
from .proto_maml import ProtoMAML
from .protonet import ProtoNet
from .reptile import Reptile
from .ridge import R2D2, MetaOptNetRR
from .sparse_maml import SparseMAML

__all__ = [
    "ABML", "ANIL", "BOIL", "FOMAML", "MAML", "R2D2", "Carry", "FeatureLearner", "LSTMMetaLearner",
    "LearnedOptimizer", "Learners", "MAMLPlusPlus", "MetaCurvature", "MetaGAN", "MetaGANOutput", "MetaLearner",
    "MetaOptNetRR", "MetaOutput", "MetaSGD", "Online", "ProtoMAML", "ProtoNet", "Reptile", "SparseMAML",
    "TaskClassifiers",
]  # fmt: skip
