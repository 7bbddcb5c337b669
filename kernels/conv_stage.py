"""Launches the sweeps of one convolution of all tasks, with the batch norm, activation and pool behind it.

Forward are two launches, conv2d and block; tangents as many. Backward are block's reduction, where there is a norm,
and its dz, then the weight's and, behind another stage, the image's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .conv2d import conv_backward_kernel, conv_forward_kernel, conv_weight_kernel
from .conv_block import block_backward_kernel, block_forward_kernel, block_reduce_kernel, block_tangent_kernel
from .description import Act, Conv
from .launch import launch
from .sweep import Before, Dual, Sink, Weights
from .tiles import PixelTiles, Tiles, conv_tiles, conv_weight_tiles, operand_type, pixel_tiles, shares


class ConvValues(NamedTuple):
    """x [T, N, H, W, C], z [T, N, HO, WO, O] of the convolution, and y [T, N, HP, WP, O]."""

    x: Dual
    z: Dual
    stats: Dual  # [T, 2, O]: mean and r of z; means of ż and x̂ ż. Nothing without a norm
    y: Dual
    picked: Dual  # behind a maximum z of the winners, as y; else z
    winner: Tensor  # int8 [T, N, HP, WP, O]; y where there is none


@dataclass(frozen=True)
class ConvStage:
    """A convolution in a row of `size` values. It is never the network's last stage."""

    conv: Conv
    size: int
    precision: str
    last: bool

    def forward(self, weights: Weights, x: Dual, known: ConvValues | None) -> ConvValues:
        """As `LinearStage.forward`. Tangents need the statistics, so they go in launches behind the values'."""
        if known is None:
            known = self._room(x.value)
            self._values(weights, known)
        if weights.phi.dot is None:
            return known
        dots = self._room(x.value, known)
        z, stats, y, picked = (Dual(a.value, b.value) for a, b in zip(known[1:5], dots[1:5], strict=True))
        values = ConvValues(x, z, stats, y, picked, known.winner)
        self._tangents(weights, values)
        return values

    def backward(
        self, weights: Weights, values: ConvValues, dy: Dual, sink: Sink, before: Before | None
    ) -> Dual | None:
        """Takes the parameters' gradients to the sink; cotangents of x, where there is a stage before."""
        parts = self._reduce(weights, values, dy) if self.conv.norm else dy.value
        dz = values.z.like(dy.value.dtype)
        self._backward_block(weights, values, dy, parts, dz, sink)
        self._weight(weights, values.x, dz, sink)
        if before is None:
            return None
        dx = before.z.like(dy.value.dtype)
        self._backward_image(weights, dz, dx)
        return dx

    def before(self, values: ConvValues) -> Before:
        """`backward` takes cotangents of y."""
        return Before(values.y, Act())

    def _room(self, x: Tensor, known: ConvValues | None = None) -> ConvValues:
        """For values of images x; the winners that are `known` are known to tangents too."""
        filters, max_pool = self.conv.filters, self.conv.pool == "max"
        at_y = (*x.shape[:2], *self.conv.pooled, filters)
        z = x.new_empty((*x.shape[:2], *self.conv.out, filters), dtype=torch.float32)
        stats = z.new_empty(x.shape[0], 2, filters)
        y = z.new_empty(at_y, dtype=operand_type(self.precision))
        picked = z.new_empty(at_y) if max_pool else z
        winner = y if not max_pool else z.new_empty(at_y, dtype=torch.int8) if known is None else known.winner
        return ConvValues(Dual(x), Dual(z), Dual(stats), Dual(y), Dual(picked), winner)

    def _label(self, *rest: str) -> str:
        conv = self.conv
        size = f"{conv.height}×{conv.width}×{conv.channels}→{conv.filters}"
        return " ".join((size, *filter(None, rest)))

    def _image(self) -> dict[str, Any]:
        """What a convolution's kernels are told."""
        conv = self.conv
        height, width = conv.out
        return {
            "H": conv.height, "W": conv.width, "C": conv.channels, "HO": height, "WO": width, "OUT": conv.filters,
            "KERNEL": conv.kernel, "STRIDE": conv.stride, "PAD": conv.padding, "W_AT": conv.w_at, "P": self.size,
        }  # fmt: skip

    def _block(self, *, picked: bool = False) -> dict[str, Any]:
        """What a block's kernels are told; those that go over what was `picked` see no pool."""
        conv = self.conv
        wide, pooled = conv.pooled if picked else conv.out, conv.pooled
        return {
            "HO": wide[0], "WO": wide[1], "HP": pooled[0], "WP": pooled[1], "OUT": conv.filters, "G_AT": conv.gamma_at,
            "B_AT": conv.beta_at, "POOL": "none" if picked else conv.pool, **conv.act.constants(),
        }  # fmt: skip

    def _bias(self) -> int:
        """How far the bias lies behind the weight; 0 without one, or where a norm takes it away."""
        return self.conv.b_at - self.conv.w_at if self.conv.b_at >= 0 and not self.conv.norm else 0

    def _pixels(self, samples: int, size: tuple[int, int]) -> int:
        return samples * size[0] * size[1]

    def _product(self, samples: int) -> tuple[Tiles, int, int]:
        """Tiles of the convolution, and the shares of rows, each of so many tiles, that leave parts of statistics."""
        conv, rows = self.conv, self._pixels(samples, self.conv.out)
        tiles = conv_tiles(self.precision, rows, conv.kernel**2, conv.channels, conv.filters, dual=False)
        return tiles, *shares(rows, tiles.rows)

    def _convolve(self, weights: Weights, values: ConvValues, *, tangents: bool) -> Tensor:
        """z or ż, and the shares' parts of their statistics."""
        tasks, samples = values.x.value.shape[:2]
        tiles, count, each = self._product(samples)
        parts = values.stats.value.new_empty(tasks, count, 2, self.conv.filters)
        launch(
            conv_forward_kernel, tiles.grid(tasks, count * tiles.rows, self.conv.filters), *weights.phi.both,
            *values.x.both, *values.z.both, values.stats.value, parts, weights.row,
            label=self._label(tangents * "tangents"), N=samples, BIAS=self._bias(), NORM=self.conv.norm, SHARES=count,
            EACH=each, TANGENTS=tangents, X_MOVES=tangents and values.x.dot is not None, **self._image(),
            **tiles.constants("BR", "BO", "BK"),
        )  # fmt: skip
        return parts

    def _values(self, weights: Weights, values: ConvValues) -> None:
        parts = self._convolve(weights, values, tangents=False)
        tasks, samples = values.x.value.shape[:2]
        product, count, each = self._product(samples)
        rows = self._pixels(samples, self.conv.pooled)
        tiles = pixel_tiles(rows, self.conv.filters)
        launch(
            block_forward_kernel, tiles.grid(tasks, rows, self.conv.filters), weights.phi.value, values.z.value, parts,
            values.stats.value, values.y.value, values.picked.value, values.winner, weights.row, label=self._label(),
            N=samples, NORM=self.conv.norm, EPS=self.conv.eps, SHARE=each * product.rows, SHARES=count,
            BS=triton.next_power_of_2(count), **self._block(), **tiles.constants("BR", "BC"),
        )  # fmt: skip

    def _tangents(self, weights: Weights, values: ConvValues) -> None:
        parts = self._convolve(weights, values, tangents=True)
        tasks, samples = values.x.value.shape[:2]
        _, count, _ = self._product(samples)
        rows = self._pixels(samples, self.conv.pooled)
        tiles = pixel_tiles(rows, self.conv.filters)
        launch(
            block_tangent_kernel, tiles.grid(tasks, rows, self.conv.filters), *weights.phi.both, *values.z.both, parts,
            *values.stats.both, values.y.both[1], *values.picked.both, values.winner, weights.row,
            label=self._label(), N=samples, NORM=self.conv.norm, P=self.size, SHARES=count,
            BS=triton.next_power_of_2(count), **self._block(), **tiles.constants("BR", "BC"),
        )  # fmt: skip

    def _reduction(self, samples: int) -> tuple[PixelTiles, int, int]:
        """Tiles of the reduction, and its shares."""
        max_pool = self.conv.pool == "max"
        rows = self._pixels(samples, self.conv.pooled if max_pool else self.conv.out)
        tiles = pixel_tiles(rows, self.conv.filters)
        return tiles, *shares(rows, tiles.rows)

    def _reduce(self, weights: Weights, values: ConvValues, dy: Dual) -> Tensor:
        """The shares' parts of the sums that a norm's cotangent asks for."""
        tasks, samples = dy.value.shape[:2]
        dual, filters = dy.dot is not None, self.conv.filters
        tiles, count, each = self._reduction(samples)
        parts = values.stats.value.new_empty(tasks, count, 4 if dual else 2, filters)
        launch(
            block_reduce_kernel, tiles.grid(tasks, count * tiles.rows, filters), *weights.phi.both, *values.picked.both,
            *values.stats.both, *dy.both, parts, weights.row, label=self._label(dual * "dual"), N=samples, P=self.size,
            SHARES=count, EACH=each, DUAL=dual, **self._block(picked=self.conv.pool == "max"),
            **tiles.constants("BR", "BC"),
        )  # fmt: skip
        return parts

    def _backward_block(
        self, weights: Weights, values: ConvValues, dy: Dual, parts: Tensor, dz: Dual, sink: Sink
    ) -> None:
        tasks, samples = dy.value.shape[:2]
        dual, rows = dy.dot is not None, self._pixels(samples, self.conv.out)
        tiles, (_, count, _) = pixel_tiles(rows, self.conv.filters), self._reduction(samples)
        launch(
            block_backward_kernel, tiles.grid(tasks, rows, self.conv.filters), *weights.phi.both, *values.z.both,
            *values.stats.both, values.winner, *dy.both, parts, *dz.both, *sink.tensors, weights.row, *sink.ends,
            label=self._label(dual * "dual", sink.options["SINK"]), N=samples, P=self.size, SHARES=count,
            BS=triton.next_power_of_2(count), NORM=self.conv.norm, BIAS_AT=self.conv.b_at, DUAL=dual, **sink.options,
            **self._block(), **tiles.constants("BR", "BC"),
        )  # fmt: skip

    def _weight(self, weights: Weights, x: Dual, dz: Dual, sink: Sink) -> None:
        tasks, samples = x.value.shape[:2]
        dual, values = dz.dot is not None, self.conv.kernel**2 * self.conv.channels
        rows = self._pixels(samples, self.conv.out)
        tiles = conv_weight_tiles(self.precision, rows, self.conv.filters, self.conv.kernel**2, self.conv.channels)
        launch(
            conv_weight_kernel, tiles.grid(tasks, self.conv.filters, values), weights.phi.value, *dz.both, *x.both,
            *sink.tensors, weights.row, *sink.ends, label=self._label(dual * "dual", sink.options["SINK"]), N=samples,
            BIAS=self._bias(), DUAL=dual, X_MOVES=x.dot is not None, **sink.options, **self._image(),
            **tiles.constants("BO", "BK", "BR"),
        )  # fmt: skip

    def _backward_image(self, weights: Weights, dz: Dual, dx: Dual) -> None:
        conv, dual = self.conv, dz.dot is not None
        tasks, samples = dz.value.shape[:2]
        rows = self._pixels(samples, (conv.height, conv.width))
        tiles = conv_tiles(self.precision, rows, conv.kernel**2, conv.filters, conv.channels, dual=dual)
        launch(
            conv_backward_kernel, tiles.grid(tasks, rows, conv.channels), *weights.phi.both, *dz.both, *dx.both,
            weights.row, label=self._label(dual * "dual"), N=samples, DUAL=dual, **self._image(),
            **tiles.constants("BR", "BC", "BK"),
        )  # fmt: skip
