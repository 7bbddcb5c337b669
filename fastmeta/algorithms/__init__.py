"""What you call: one file an algorithm."""

from .base import MetaLearner
from .cavia import CAVIA
from .distillation import Distillation, SupportSet
from .imaml import IMAML
from .maml import FOMAML, MAML
from .outputs import Learners, MetaOutput
from .reptile import Reptile
from .weighting import weighted

__all__ = [
    "CAVIA",
    "FOMAML",
    "IMAML",
    "MAML",
    "Distillation",
    "Learners",
    "MetaLearner",
    "MetaOutput",
    "Reptile",
    "SupportSet",
    "weighted",
]
