"""What you call: one file an algorithm."""

from .base import MetaLearner
from .cavia import CAVIA
from .imaml import IMAML
from .maml import FOMAML, MAML
from .outputs import Learners, MetaOutput
from .reptile import Reptile

__all__ = ["CAVIA", "FOMAML", "IMAML", "MAML", "Learners", "MetaLearner", "MetaOutput", "Reptile"]
