"""Launches the mean over an image's positions of all tasks, and its transpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .description import GlobalMean
from .launch import launch
from .pixels import pixel_mean_kernel, pixel_spread_kernel
from .sweep import Below, Cotangent, Dual, Sink, Weights
from .tiles import operand_type, pixel_tiles


class MeanValues(NamedTuple):
    """y [T, N, C]."""

    y: Dual


@dataclass(frozen=True)
class MeanStage:
    """[T, N, H, W, C] → [T, N, C]; without parameters, so `size` is nobody's."""

    mean: GlobalMean
    size: int
    precision: str

    def forward(self, weights: Weights, inputs: tuple[Dual, ...], known: MeanValues | None, seen: int) -> MeanValues:
        """As `LinearStage.forward`."""
        (x,) = inputs
        tasks, samples = x.value.shape[:2]
        dual, channels = x.dot is not None, self.mean.channels
        y = x.value.new_empty(tasks, samples, channels, dtype=operand_type(self.precision))
        if known is not None:
            y = known.y.value
        values = MeanValues(Dual(y, y.new_empty(y.shape) if dual else None))
        tiles = pixel_tiles(samples, channels)
        launch(
            pixel_mean_kernel, tiles.grid(tasks, samples, channels), *x.both, *values.y.both, label=self._label(dual),
            N=samples, PIXELS=self.mean.positions, C=channels, PRIMAL=known is None, DUAL=dual,
            **tiles.constants("BN", "BC"),
        )  # fmt: skip
        return values

    def backward(
        self, weights: Weights, values: MeanValues, dy: Cotangent, sink: Sink, below: tuple[Below | None, ...]
    ) -> list[Cotangent]:
        """Cotangents of x."""
        (under,) = below
        assert under is not None, "a mean comes behind a convolution"
        tasks, samples = dy.d.value.shape[:2]
        dual, channels, rows = dy.d.dot is not None, self.mean.channels, samples * self.mean.positions
        dx = under.z.like(dy.d.value.dtype)
        tiles = pixel_tiles(rows, channels)
        launch(
            pixel_spread_kernel, tiles.grid(tasks, rows, channels), *dy.d.both, *dx.both, label=self._label(dual),
            N=samples, PIXELS=self.mean.positions, C=channels, DUAL=dual, **tiles.constants("BR", "BC"),
        )  # fmt: skip
        return [Cotangent(dx)]

    def below(self, values: MeanValues, into: Dual | None, *, alone: bool) -> Below:
        """`backward` takes cotangents of y."""
        return Below(values.y, into=into)

    def _label(self, dual: bool) -> str:
        return f"mean of {self.mean.positions}" + dual * " dual"
