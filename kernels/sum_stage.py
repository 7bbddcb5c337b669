"""Launches a sum of two branches of all tasks, with the activation and pool behind it, and back."""

from __future__ import annotations

from dataclasses import dataclass

from .block_stage import BlockStage, BlockValues
from .launch import also
from .sweep import Below, Cotangent, Dual, Sink, Weights


@dataclass(frozen=True)
class SumStage(BlockStage):
    """y = pool(f(a + b)): a block without convolution and norm."""

    def forward(self, weights: Weights, inputs: tuple[Dual, ...], known: BlockValues | None, seen: int) -> BlockValues:
        """As `LinearStage.forward`, of the two summands."""
        a, b = inputs
        values = self._room(b, a, seen, None) if known is None else known
        if known is None:
            self._block_values(weights, values, None, None)
        if weights.phi.dot is None:
            return values
        values = self._room(b, a, seen, values)
        self._block_tangents(weights, values, None, None)
        return values

    def backward(
        self, weights: Weights, values: BlockValues, dy: Cotangent, sink: Sink, below: tuple[Below | None, ...]
    ) -> list[Cotangent]:
        """Cotangents of both summands, which are the same; each has its own where other stages add to one of them."""
        shape = (*dy.d.value.shape[:2], *self.block.out, self.block.filters)
        d = Dual(*(x if x is None else x.new_empty(shape) for x in dy.d))  # pyright: ignore[reportArgumentType]  # the value is there
        self._block_backward(weights, values, dy, d, sink)
        other = d
        if not all(b is None or b.alone for b in below):
            other = d.like()
            for a, b in zip(other, d, strict=True):
                if a is not None and b is not None:
                    also(a.copy_, b)
        return [Cotangent(_onto(share, b.into)) for share, b in zip((d, other), below, strict=True) if b is not None]


def _onto(d: Dual, into: Dual | None) -> Dual:
    """d, on top of what other stages made of the same cotangent."""
    if into is None:
        return d
    for a, b in zip(into, d, strict=True):
        if a is not None and b is not None:
            also(a.add_, b)
    return into
