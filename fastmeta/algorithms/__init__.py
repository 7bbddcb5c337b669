"""What you call: one file an algorithm."""

from .abml import ABML
from .anil import ANIL, BOIL
from .base import MetaLearner
from .cavia import CAVIA
from .distillation import Distillation, SupportSet
from .features import FeatureLearner, TaskClassifiers
from .imaml import IMAML
from .learned_optimizer import Carry, LearnedOptimizer
from .lstm import LSTMMetaLearner
from .maml import FOMAML, MAML
from .maml_plus_plus import MAMLPlusPlus
from .meta_curvature import MetaCurvature
from .meta_sgd import MetaSGD
from .metagan import MetaGAN, MetaGANOutput
from .online import Online
from .outputs import Learners, MetaOutput
from .policy import AdaptedPolicies, PolicyMAML, PolicyOutput
from .proto_maml import ProtoMAML
from .protonet import ProtoNet
from .reptile import Reptile
from .ridge import R2D2, MetaOptNetRR
from .sparse_maml import SparseMAML
from .surrogates import LinearBaseline
from .weighting import weighted

__all__ = [
    "ABML", "ANIL", "BOIL", "CAVIA", "FOMAML", "IMAML", "MAML", "R2D2", "AdaptedPolicies", "Carry", "Distillation",
    "FeatureLearner", "LSTMMetaLearner", "LearnedOptimizer", "Learners", "LinearBaseline", "MAMLPlusPlus",
    "MetaCurvature", "MetaGAN", "MetaGANOutput", "MetaLearner", "MetaOptNetRR", "MetaOutput", "MetaSGD", "Online",
    "PolicyMAML", "PolicyOutput", "ProtoMAML", "ProtoNet", "Reptile", "SparseMAML", "SupportSet", "TaskClassifiers",
    "weighted",
]  # fmt: skip
