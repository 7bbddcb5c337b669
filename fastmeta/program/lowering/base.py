"""What a rule of lowering sees: the plan under construction, and its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fastmeta.ops.base import Op


class NotKnown(Exception):
    """No op covers this call; the message says why."""


@dataclass(frozen=True)
class Slot:
    """A value of the plan. `like` is a data-free tensor with one task's shape and dtype."""

    index: int
    like: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one task."""
        return tuple(self.like.shape)


class Lower(Protocol):
    """What a rule may ask of the plan under construction."""

    rows: int | None  # batch-norm statistics from the first rows only

    def emit(self, op: Op, *inputs: Slot) -> Slot:
        """Adds an op to the plan, and gives the slot of its one output."""
        ...

    def constant(self, value: Tensor) -> Slot:
        """The slot of a tensor that is the same for all tasks."""
        ...

    def keys(self) -> Slot:
        """The slot of the step's random keys."""
        ...

    def next_layer(self) -> int:
        """A number of its own for each dropout."""
        ...


Rule = Callable[..., Any]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number for both, or from one or two in a sequence."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))
