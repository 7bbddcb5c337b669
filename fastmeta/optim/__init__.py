"""Inner rules: one file each."""

from .adam import Adam
from .sgd import SGD

InnerOptimizer = SGD | Adam

__all__ = ["SGD", "Adam", "InnerOptimizer"]
