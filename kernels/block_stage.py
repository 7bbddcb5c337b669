"""Launches what is behind a convolution, or behind a sum of branches: batch norm, activation and pool, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .conv_block import block_forward_kernel, block_tangent_kernel
from .conv_block_backward import block_backward_kernel, block_reduce_kernel
from .description import Conv, Sum
from .launch import launch
from .sweep import Below, Cotangent, Dual, Norm, Sink, Weights
from .tiles import Tiles, operand_type, pixel_shares, pixel_tiles


class BlockValues(NamedTuple):
    """x [T, N, H, W, C], z [T, N, HO, WO, O] of the convolution, and y [T, N, HP, WP, O]. Of a sum z and x are the
    summands; where z is not stored, y is in its place."""

    x: Dual
    z: Dual
    stats: Dual  # [T, 2, O]: mean and r of z; means of ż and x̂ ż. Nothing without a norm
    y: Dual
    picked: Dual  # behind a maximum z of the winners, as y; else z
    winner: Tensor  # int8 [T, N, HP, WP, O]; y where there is none
    seen: int  # images that the statistics are of


class Parts(NamedTuple):
    """What shares of a task's rows left of statistics [T, shares, 2, O], and how many rows a share has."""

    tensor: Tensor
    rows: int


@dataclass(frozen=True)
class BlockStage:
    """What a convolution and a sum have in common. `origin` says where z comes from (`conv_block.py`)."""

    block: Conv | Sum
    size: int
    precision: str
    origin: str

    def below(self, values: BlockValues, into: Dual | None, *, alone: bool) -> Below:
        """`backward` takes cotangents of y. A norm's sums come along where they are of one stage's making alone."""
        block, picked = self.block, self.block.pool == "max"
        if not (block.norm and alone):
            return Below(values.y, into=into, alone=alone)
        wide = block.pooled if picked else block.out
        options = {
            "SUMS": True, "HZ": wide[0], "WZ": wide[1], "G_AT": block.gamma_at, "B_AT": block.beta_at,
            "POOL": "none" if picked else block.pool, **block.act.constants(),
        }  # fmt: skip
        return Below(values.y, norm=Norm(values.picked, values.stats, block.pooled, options), into=into)

    def _room(self, x: Dual, z: Dual | None, seen: int, known: BlockValues | None) -> BlockValues:
        """For values of x and, of a sum, z; for tangents beside what is `known`."""
        block = self.block
        if known is None:
            at_y = (*x.value.shape[:2], *block.pooled, block.filters)
            y = x.value.new_empty(at_y, dtype=operand_type(self.precision))
            stored = self._room_for_z(x.value) if self.origin == "stored" else y if z is None else z.value
            stats = stored.new_empty(at_y[0], 2, block.filters, dtype=torch.float32)
            picked, winner = stored, y
            if block.pool == "max":
                picked, winner = torch.empty_like(y), y.new_empty(at_y, dtype=torch.int8)
            return BlockValues(x, Dual(stored), Dual(stats), Dual(y), Dual(picked), winner, seen)
        y_dot = torch.empty_like(known.y.value)
        stored = self._room_for_z(x.value) if self.origin == "stored" else y_dot if z is None else z.both[1]
        picked_dot = torch.empty_like(known.picked.value) if block.pool == "max" else stored
        stats_dot = torch.empty_like(known.stats.value)
        return known._replace(
            x=x, z=Dual(known.z.value, stored), stats=Dual(known.stats.value, stats_dot),
            y=Dual(known.y.value, y_dot), picked=Dual(known.picked.value, picked_dot),
        )  # fmt: skip

    def _room_for_z(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], *self.block.out, self.block.filters)
        return x.new_empty(shape, dtype=operand_type(self.precision))  # statistics come before it is rounded

    def _label(self, *rest: str) -> str:
        height, width, channels, *_, filters, _, _, _ = self.block.geometry
        size = f"{height}×{width}×{channels}→{filters}"
        return " ".join((size, *filter(None, rest)))

    def _bias(self) -> int:
        """How far the bias lies behind the weight; 0 without one, or where a norm takes it away."""
        block = self.block
        return block.b_at - block.w_at if block.b_at >= 0 and not block.norm else 0

    def _about(self, values: BlockValues) -> dict[str, Any]:
        """What all of a block's kernels are told."""
        block, pooled = self.block, self.block.pooled
        return {
            "N": values.x.value.shape[1], "G": block.geometry, "HP": pooled[0], "WP": pooled[1], "NORM": block.norm,
            "G_AT": block.gamma_at, "B_AT": block.beta_at, "POOL": block.pool, **block.act.constants(),
        }  # fmt: skip

    def _sources(self, tiles: Tiles | None) -> dict[str, Any]:
        """How z is come by."""
        depth, precision = 16, "ieee"  # unless it is made again, nobody's
        if tiles is not None and self.origin == "image":
            depth, precision = tiles.depth, tiles.precision
        return {
            "W_AT": self.block.w_at, "BIAS": self._bias(), "Z": self.origin, "BK": depth, "PRECISION": precision,
        }  # fmt: skip

    def _block_values(self, weights: Weights, values: BlockValues, parts: Parts | None, tiles: Tiles | None) -> None:
        """y, from the parts of the statistics where there is a norm; `tiles` are the convolution's."""
        tasks, samples = values.x.value.shape[:2]
        left, share = (values.y.value, 1) if parts is None else parts
        count = 1 if parts is None else left.shape[1]
        rows = pixels(samples, self.block.pooled)
        over = pixel_tiles(rows, self.block.filters, much=self.origin == "image")
        launch(
            block_forward_kernel, over.grid(tasks, rows, self.block.filters), weights.phi.value, values.x.value,
            values.z.value, left, values.stats.value, values.y.value, values.picked.value, values.winner, weights.row,
            label=self._label(self.origin), SEEN=values.seen, EPS=self.block.eps, SHARE=share, SHARES=count,
            BS=triton.next_power_of_2(count), **self._about(values), **self._sources(tiles),
            **over.constants("BR", "BC"),
        )  # fmt: skip

    def _block_tangents(self, weights: Weights, values: BlockValues, parts: Parts | None, tiles: Tiles | None) -> None:
        """ẏ."""
        tasks, samples = values.x.value.shape[:2]
        left = values.y.value if parts is None else parts.tensor
        count = 1 if parts is None else left.shape[1]
        rows = pixels(samples, self.block.pooled)
        over = pixel_tiles(rows, self.block.filters, much=self.origin == "image")
        launch(
            block_tangent_kernel, over.grid(tasks, rows, self.block.filters), *weights.phi.both, *values.x.both,
            *values.z.both, left, *values.stats.both, values.y.both[1], *values.picked.both, values.winner, weights.row,
            label=self._label(self.origin), P=self.size, SHARES=count, BS=triton.next_power_of_2(count),
            **self._about(values), **self._sources(tiles), **over.constants("BR", "BC"),
        )  # fmt: skip

    def _sums(self, weights: Weights, values: BlockValues, dy: Cotangent) -> Tensor:
        """The parts of the sums that the norm asks for, where nobody left them."""
        if dy.parts is not None or not self.block.norm:
            return dy.d.value if dy.parts is None else dy.parts
        norm = self.below(values, None, alone=True).norm
        assert norm is not None, "a block with a norm asks for its sums"
        tasks, samples = dy.d.value.shape[:2]
        dual, filters, rows = dy.d.dot is not None, self.block.filters, pixels(samples, norm.size)
        tiles = pixel_tiles(rows, filters)
        count, each = pixel_shares(rows, tiles.rows)
        parts = values.stats.value.new_empty(tasks, count, 4 if dual else 2, filters)
        options = {name: value for name, value in norm.options.items() if name != "SUMS"}
        launch(
            block_reduce_kernel, tiles.grid(tasks, count * tiles.rows, filters), *weights.phi.both, *norm.tensors,
            *dy.d.both, parts, weights.row, label=self._label(dual * "dual"), N=samples, P=self.size, HP=norm.size[0],
            WP=norm.size[1], OUT=filters, SHARES=count, EACH=each, DUAL=dual, **options, **tiles.constants("BR", "BC"),
        )  # fmt: skip
        return parts

    def _block_backward(self, weights: Weights, values: BlockValues, dy: Cotangent, dz: Dual, sink: Sink) -> None:
        """dz, and the norm's parameters' gradients to the sink."""
        parts = self._sums(weights, values, dy)
        tasks, samples = dz.value.shape[:2]
        dual, rows = dz.dot is not None, pixels(samples, self.block.out)
        tiles, count = pixel_tiles(rows, self.block.filters, much=dual), parts.shape[1]
        launch(
            block_backward_kernel, tiles.grid(tasks, rows, self.block.filters), *weights.phi.both, *values.x.both,
            *values.z.both, *values.stats.both, values.winner, *dy.d.both, parts, *dz.both, *sink.tensors, weights.row,
            *sink.ends, label=self._label(dual * "dual", sink.options["SINK"]), SEEN=values.seen, P=self.size,
            SHARES=count, BS=triton.next_power_of_2(count), BIAS_AT=self.block.b_at, Z=self.origin, DUAL=dual,
            **sink.options, **self._about(values), **tiles.constants("BR", "BC"),
        )  # fmt: skip


def pixels(samples: int, size: tuple[int, int]) -> int:
    """Of so many images."""
    return samples * size[0] * size[1]
