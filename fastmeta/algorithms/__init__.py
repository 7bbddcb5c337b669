"""What you call: one file an algorithm."""

from .base import MetaLearner
from .features import FeatureLearner, TaskClassifiers
from .maml import FOMAML, MAML
from .metagan import MetaGAN, MetaGANOutput
from .outputs import Learners, MetaOutput
from .proto_maml import ProtoMAML
from .protonet import ProtoNet
from .reptile import Reptile
from .ridge import R2D2, MetaOptNetRR

__all__ = [
    "FOMAML", "MAML", "R2D2", "FeatureLearner", "Learners", "MetaGAN", "MetaGANOutput", "MetaLearner", "MetaOptNetRR",
    "MetaOutput", "ProtoMAML", "ProtoNet", "Reptile", "TaskClassifiers",
]  # fmt: skip
