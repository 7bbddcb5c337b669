"""Which op each PyTorch function and method becomes.

A rule takes a `Lower` (the plan under construction) and the call's own arguments, tensors among them as `Slot`s, and
returns the slot of the result. Where a variant has no op of its own, the rule raises `NotKnown` with the reason and
the call becomes an opaque op.
"""

from .base import NotKnown, Rule, Slot
from .tables import RULES

__all__ = ["RULES", "NotKnown", "Rule", "Slot"]
