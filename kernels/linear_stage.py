"""Launches the sweeps of one linear layer of all tasks, with the activation behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .activation import IDENTITY
from .description import Linear
from .launch import launch
from .linear import linear_backward_kernel, linear_forward_kernel, linear_weight_kernel
from .sweep import Below, Cotangent, Dual, Sink, Weights
from .tiles import layer_tiles, operand_type, weight_tiles


class LinearValues(NamedTuple):
    """x [T, N, ...] of IN values a sample, z = x Wᵀ + b and y = f(z) [T, N, OUT]."""

    x: Dual
    z: Dual
    y: Dual


@dataclass(frozen=True)
class LinearStage:
    """A layer in a row of `size` values; the network's last one gives float32."""

    layer: Linear
    size: int
    precision: str
    last: bool

    def forward(
        self, weights: Weights, inputs: tuple[Dual, ...], known: LinearValues | None, seen: int
    ) -> LinearValues:
        """Values, with their tangents where the weights move; those that are `known` are not computed again.

        `seen` is for batch norms: of how many samples their statistics are.
        """
        (x,) = inputs
        z, y = self._room(x.value) if known is None else (known.z.value, known.y.value)
        z_dot, y_dot = self._room(x.value) if weights.phi.dot is not None else (None, None)
        values = LinearValues(x, Dual(z, z_dot), Dual(y, y_dot))
        self._forward(weights, values, primal=known is None)
        return values

    def backward(
        self, weights: Weights, values: LinearValues, dz: Cotangent, sink: Sink, below: tuple[Below | None, ...]
    ) -> list[Cotangent]:
        """Takes the weight's gradient to the sink; dx, times the slope below, where there is a stage below."""
        (under,) = below
        self._weight(weights, values.x, dz.d, sink)
        return [] if under is None else [Cotangent(self._backward(weights, under, dz.d))]

    def below(self, values: LinearValues, into: Dual | None, *, alone: bool) -> Below:
        """`backward` takes cotangents of z, so the stage above multiplies by f's slope."""
        assert into is None, "a linear layer has one reader"
        return Below(values.z, self.layer.act)

    def _sizes(self) -> dict[str, Any]:
        return {"IN": self.layer.inputs, "OUT": self.layer.outputs, "P": self.size}

    def _bias(self) -> int:
        """How far the bias lies behind the weight; 0 without one."""
        return self.layer.b_at - self.layer.w_at if self.layer.b_at >= 0 else 0

    def _label(self, *rest: str) -> str:
        return " ".join((f"{self.layer.inputs}→{self.layer.outputs}", *filter(None, rest)))

    def _room(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For z and y; one tensor where f is the identity."""
        shape = (*x.shape[:2], self.layer.outputs)
        dtype = torch.float32 if self.last else operand_type(self.precision)
        z = x.new_empty(shape, dtype=torch.float32)
        if self.layer.act.kind == IDENTITY and z.dtype == dtype:
            return z, z
        return z, x.new_empty(shape, dtype=dtype)

    def _forward(self, weights: Weights, values: LinearValues, *, primal: bool) -> None:
        x, z, y = values
        tasks, samples = x.value.shape[:2]
        inputs, outputs, dual = self.layer.inputs, self.layer.outputs, z.dot is not None
        tiles = layer_tiles(self.precision, samples, inputs, outputs, dual=dual)
        tensors = (*x.both, z.both[0], y.both[0], z.both[1], y.both[1])
        launch(
            linear_forward_kernel, tiles.grid(tasks, samples, outputs), *weights.phi.both, *tensors, weights.row,
            self.layer.w_at // 4, label=self._label(dual * "dual", (not primal) * "tangents"), N=samples,
            BIAS=self._bias(), PRIMAL=primal, DUAL=dual, STORE_Y=y.value is not z.value, X_MOVES=x.dot is not None,
            **self._sizes(), **self.layer.act.constants(), **tiles.constants("BN", "BO", "BI"),
        )  # fmt: skip

    def _weight(self, weights: Weights, x: Dual, dz: Dual, sink: Sink) -> None:
        tasks, samples = x.value.shape[:2]
        tiles = weight_tiles(self.precision, samples, self.layer.inputs, self.layer.outputs)
        dual = dz.dot is not None
        launch(
            linear_weight_kernel, tiles.grid(tasks, self.layer.outputs, self.layer.inputs), weights.phi.value, *dz.both,
            *x.both, *sink.tensors, weights.row, self.layer.w_at // 4, *sink.ends,
            label=self._label(dual * "dual", sink.options["SINK"]), N=samples, BIAS=self._bias(), DUAL=dual,
            X_MOVES=x.dot is not None, **sink.options, **self._sizes(), **tiles.constants("BO", "BI", "BN"),
        )  # fmt: skip

    def _backward(self, weights: Weights, below: Below, dz: Dual) -> Dual:
        tasks, samples = dz.value.shape[:2]
        dual = dz.dot is not None
        tiles = layer_tiles(self.precision, samples, self.layer.outputs, self.layer.inputs, dual=dual)
        dx = below.z.like(dz.value.dtype)
        launch(
            linear_backward_kernel, tiles.grid(tasks, samples, self.layer.inputs), *weights.phi.both, *dz.both,
            *below.z.both, *dx.both, weights.row, self.layer.w_at // 4, label=self._label(dual * "dual"), N=samples,
            DUAL=dual, **self._sizes(), **below.act.constants(), **tiles.constants("BN", "BI", "BO"),
        )  # fmt: skip
        return dx
