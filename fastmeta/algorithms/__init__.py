"""What you call: one file an algorithm."""

from .abml import ABML
from .base import MetaLearner
from .maml import FOMAML, MAML
from .maml_plus_plus import MAMLPlusPlus
from .online import Online
from .outputs import Learners, MetaOutput
from .reptile import Reptile

__all__ = ["ABML", "FOMAML", "MAML", "Learners", "MAMLPlusPlus", "MetaLearner", "MetaOutput", "Online", "Reptile"]
