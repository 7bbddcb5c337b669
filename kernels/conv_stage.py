"""Launches the sweeps of one convolution of all tasks, with the batch norm, activation and pool behind it.

Forward are two launches, conv2d and block; tangents as many. Backward are block's dz, one for the gradient of the image
and one for the weight's; where image and z have one size, the image's makes dz on its way. A first block from few
channels does not store z, which three of its kernels convolve again: then forward are two, or one without a norm, and
backward is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton

from .block_stage import BlockStage, BlockValues, Parts, pixels
from .conv2d import conv_forward_kernel
from .conv2d_backward import conv_weight_kernel
from .conv_block_backward import block_weight_kernel
from .conv_image import conv_image_kernel
from .description import Conv
from .launch import launch
from .sweep import NO_NORM, Below, Cotangent, Dual, Sink, Weights
from .tiles import (
    CONV_COLUMNS,
    Tiles,
    again_tiles,
    conv_tiles,
    conv_weight_tiles,
    convolves_again,
    dz_tiles,
    image_tiles,
    pixel_shares,
    weight_shares,
)


@dataclass(frozen=True)
class ConvStage(BlockStage):
    """A convolution in a row of `size` values. It is never the network's last stage."""

    block: Conv

    @classmethod
    def of(cls, conv: Conv, size: int, precision: str, *, first: bool) -> ConvStage:
        """`first`: it sees the network's inputs, which have no tangent and want no cotangent."""
        again = first and convolves_again(conv)
        return cls(conv, size, precision, "image" if again else "stored")

    def forward(self, weights: Weights, inputs: tuple[Dual, ...], known: BlockValues | None, seen: int) -> BlockValues:
        """As `LinearStage.forward`. Tangents need the statistics, so they go in launches behind the values'."""
        (x,) = inputs
        if known is None:
            known, tiles = self._room(x, None, seen, None), self._product(x.value.shape[1])
            self._block_values(weights, known, self._convolve(weights, known, tiles, tangents=False), tiles)
        if weights.phi.dot is None:
            return known
        two = self.origin == "image" or self.precision == "float32"  # of two results, or three products each
        values, tiles = self._room(x, None, seen, known), self._product(x.value.shape[1], dual=two)
        self._block_tangents(weights, values, self._convolve(weights, values, tiles, tangents=True), tiles)
        return values

    def backward(
        self, weights: Weights, values: BlockValues, dy: Cotangent, sink: Sink, below: tuple[Below | None, ...]
    ) -> list[Cotangent]:
        """Takes the parameters' gradients to the sink; cotangents of x, where there is a stage below."""
        if self.origin == "image":
            self._weight(weights, values, dy, sink)
            return []
        dz, dx = values.z.like(dy.d.value.dtype), []
        (under,) = below
        makes_dz = under is not None and self._same_size() and self.block.channels <= CONV_COLUMNS
        if not makes_dz:
            self._block_backward(weights, values, dy, dz, sink)
        if under is not None:
            dx = [self._image_gradients(weights, values, dy, dz, sink, under, makes_dz=makes_dz)]
        self._filter_gradients(weights, values.x, dz, sink)
        return dx

    def _same_size(self) -> bool:
        """Whether the image and z have one size, so that a pixel's neighbours lie as far away in both."""
        conv = self.block
        return conv.stride == 1 and conv.out == (conv.height, conv.width)

    def _product(self, samples: int, *, dual: bool = False) -> Tiles:
        """Tiles of the convolution; `dual` where it has as much to hold as two results."""
        conv, rows = self.block, pixels(samples, self.block.out)
        tiles = conv_tiles(self.precision, rows, conv.kernel**2, conv.channels, conv.filters, dual=dual)
        # a filter of 27 values in one block leaves 48 bytes of stack (84×84×3→32, sm_90, tf32)
        return tiles._replace(depth=16) if dual and self.origin == "image" else tiles

    def _convolve(self, weights: Weights, values: BlockValues, tiles: Tiles, *, tangents: bool) -> Parts | None:
        """z or ż, where it is stored, and what shares of the rows leave of its statistics."""
        conv = self.block
        if not (conv.norm or self.origin == "stored"):
            return None
        tasks, samples = values.x.value.shape[:2]
        count, each = pixel_shares(pixels(samples, conv.out), tiles.rows)
        parts = values.stats.value.new_empty(tasks, count, 2, conv.filters)
        launch(
            conv_forward_kernel, tiles.grid(tasks, count * tiles.rows, conv.filters), *weights.phi.both, *values.x.both,
            *values.z.both, values.stats.value, parts, weights.row, label=self._label(tangents * "tangents"), N=samples,
            SEEN=values.seen, G=conv.geometry, W_AT=conv.w_at, BIAS=self._bias(), P=self.size, NORM=conv.norm,
            STORE=self.origin == "stored", SHARES=count, EACH=each, TANGENTS=tangents,
            X_MOVES=tangents and values.x.dot is not None, **tiles.constants("BR", "BO", "BK"),
        )  # fmt: skip
        return Parts(parts, each * tiles.rows) if conv.norm else None

    def _shares(self, tiles: Tiles, tasks: int, rows: int) -> tuple[int, dict[str, Any]]:
        """Terms' size and what a kernel is told of a weight's tiles and their shares of so many rows."""
        conv = self.block
        (count,) = tiles.grid(1, conv.filters, conv.kernel**2 * conv.channels)
        shares, each = weight_shares(rows, tiles.depth, tasks * count)
        size = shares * count * (tiles.rows * tiles.columns + tiles.rows) if shares > 1 else 0
        return size, {"TILES": count, "SHARES": shares, "EACH": each}

    def _filter_gradients(self, weights: Weights, x: Dual, dz: Dual, sink: Sink) -> None:
        """The weight's gradient, to the sink."""
        conv, dual = self.block, dz.dot is not None
        tasks, samples = dz.value.shape[:2]
        rows = pixels(samples, conv.out)
        tiles = conv_weight_tiles(self.precision, rows, conv.filters, conv.kernel**2, conv.channels)
        size, options = self._shares(tiles, tasks, rows)
        terms = weights.phi.value.new_empty(tasks, size)
        launch(
            conv_weight_kernel, (tasks * options["TILES"] * options["SHARES"],), weights.phi.value, *dz.both, *x.both,
            *sink.tensors, terms, sink.counters(tasks * options["TILES"]), weights.row, *sink.ends,
            label=self._label(dual * "dual", sink.options["SINK"]), N=samples, G=conv.geometry, W_AT=conv.w_at,
            BIAS=self._bias(), P=self.size, DUAL=dual, X_MOVES=x.dot is not None, **options, **sink.options,
            **tiles.constants("BO", "BK", "BR"),
        )  # fmt: skip

    def _image_gradients(
        self, weights: Weights, values: BlockValues, dy: Cotangent, dz: Dual, sink: Sink, below: Below, *,
        makes_dz: bool,
    ) -> Cotangent:  # fmt: skip
        """The images' gradient, with the sums that the block below asks for; before it dz, if it is not made yet."""
        conv, dual, norm = self.block, dz.dot is not None, below.norm
        tasks, samples = dz.value.shape[:2]
        rows = pixels(samples, (conv.height, conv.width))
        tiles = image_tiles(self.precision, rows, conv.kernel**2, conv.filters, conv.channels, dual=dual)
        count, each = pixel_shares(rows, tiles.rows)
        dx, parts = below.into or below.z.like(dz.value.dtype), None
        if norm is not None:
            parts = norm.stats.value.new_empty(tasks, count, 4 if dual else 2, conv.channels)
        nothing = weights.phi.value
        sums = self._sums(weights, values, dy) if makes_dz else nothing
        left = sums.shape[1] if makes_dz else 1
        options = NO_NORM if norm is None else norm.options
        launch(
            conv_image_kernel, tiles.grid(tasks, count * tiles.rows, conv.channels), *weights.phi.both, *values.z.both,
            *values.stats.both, values.winner, *dy.d.both, sums, *dz.both, *sink.tensors, *dx.both,
            *((nothing,) * 4 if norm is None else norm.tensors), nothing if parts is None else parts, weights.row,
            *sink.ends, label=self._label(dual * "dual", makes_dz * sink.options["SINK"]), SEEN=values.seen,
            W_AT=conv.w_at, BIAS_AT=conv.b_at, P=self.size, PARTS=left, BS=triton.next_power_of_2(left),
            MAKES_DZ=makes_dz, **dz_tiles(conv.filters, dual=dual), ADD=below.into is not None, SHARES=count,
            EACH=each, BELOW=tuple(options[name] for name in NO_NORM), DUAL=dual, **sink.options,
            **self._about(values), **tiles.constants("BR", "BC", "BK"),
        )  # fmt: skip
        return Cotangent(dx, parts)

    def _weight(self, weights: Weights, values: BlockValues, dy: Cotangent, sink: Sink) -> None:
        """The parameters' gradients, to the sink, of a block that convolves again."""
        conv, dual = self.block, dy.d.dot is not None
        parts = self._sums(weights, values, dy)
        tasks, samples = dy.d.value.shape[:2]
        rows = pixels(samples, conv.out)
        tiles = again_tiles(self.precision, rows, conv.filters, conv.kernel**2, conv.channels)
        size, options = self._shares(tiles, tasks, rows)
        terms = weights.phi.value.new_empty(tasks, size)
        launch(
            block_weight_kernel, (tasks * options["TILES"] * options["SHARES"],), *weights.phi.both, values.x.value,
            *values.stats.both, values.winner, *dy.d.both, parts, *sink.tensors, terms,
            sink.counters(tasks * options["TILES"]), weights.row, *sink.ends,
            label=self._label(dual * "dual", sink.options["SINK"]), SEEN=values.seen, W_AT=conv.w_at, BIAS=self._bias(),
            BIAS_AT=conv.b_at, P=self.size, PARTS=parts.shape[1], BS=triton.next_power_of_2(parts.shape[1]), DUAL=dual,
            **options, **sink.options, **self._about(values), **tiles.constants("BO", "BK", "BR"),
        )  # fmt: skip
