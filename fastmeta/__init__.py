"""fastmeta: meta-learning over all tasks at once."""

from .algorithms import FOMAML, MAML, Learners, MetaOutput, Reptile
from .inner import SGD, Adam

__all__ = ["FOMAML", "MAML", "SGD", "Adam", "Learners", "MetaOutput", "Reptile"]
__version__ = "0.1.0"
