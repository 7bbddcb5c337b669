"""What you call: one file an algorithm."""

from .anil import ANIL, BOIL
from .base import MetaLearner
from .maml import FOMAML, MAML
from .outputs import Learners, MetaOutput
from .reptile import Reptile

__all__ = ["ANIL", "BOIL", "FOMAML", "MAML", "Learners", "MetaLearner", "MetaOutput", "Reptile"]
