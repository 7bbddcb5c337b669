"""Launches a perceptron layer by layer, where `mlp_loop` does not hold it: any width, any number of samples.

A gradient takes 3 launches a layer, that of the loss among them; a step of the adjoint as many, on dual numbers, and
one that makes SGD's v (Adam's asks for a gradient before it). Between launches travel pre-activations z, activations y
and their cotangents dz, so each activation function is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .activation import IDENTITY
from .description import Adapted, Chain, InnerRule, LossRule
from .launch import launch
from .linear import linear_backward_kernel, linear_forward_kernel, linear_weight_kernel
from .loss import loss_kernel
from .mean_over_tasks import finite_kernel, inputs_kernel, losses_kernel
from .sink import pull_kernel
from .tiles import block, layer_tiles, loss_tiles, operand_type, weight_tiles

_WIDTH = 1024  # values of a program that goes over a row


class Dual(NamedTuple):
    """A value and, in a sweep of tangents, its tangent."""

    value: Tensor
    dot: Tensor | None = None

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """Two tensors for a kernel, which reads no second one where there is no tangent."""
        return self.value, self.value if self.dot is None else self.dot

    def like(self, dtype: torch.dtype | None = None) -> Dual:
        """Room for another of this shape."""
        room = torch.empty_like(self.value, dtype=dtype)
        return Dual(room, None if self.dot is None else torch.empty_like(room))


class Weights(NamedTuple):
    """φ of all tasks and the direction v of a sweep of tangents; rows of φ are `row` values apart: P, or 0 at θ."""

    phi: Dual
    row: int


class Values(NamedTuple):
    """What goes forward: z_l [T, N, D_{l+1}] of every layer, and x_0 … x_L [T, N, D_l] with x_{l+1} = f(z_l)."""

    zs: list[Dual]
    xs: list[Dual]


class Sink(NamedTuple):
    """Where parameters' gradients go (`sink.py`), in rows of all tasks, and in which inner step."""

    name: str
    to: Tensor
    with_: Tensor
    state: Tensor
    next: Tensor
    step: int = 0


@dataclass(frozen=True)
class Layerwise:
    """One perceptron, inner loop and precision, with the functions of `mlp.MLP`.

    `save` keeps every inner step's values for the adjoint, which otherwise computes them again.
    """

    chain: Chain
    inner: InnerRule
    inner_loss: LossRule
    precision: str  # "float32", "tf32" or "bfloat16"
    save: bool

    def adapt(self, theta: list[Tensor], x: Tensor, y: Tensor, *, keep: bool, lr: Tensor | None = None) -> Adapted:
        """As `MLP.adapt`."""
        adapted = self.inner.start(theta, x, keep=keep)
        launch(inputs_kernel, (x.shape[0],), x, adapted.bad, SIZE=x[0].numel(), BLOCK=_WIDTH, num_warps=4)
        for k in range(self.inner.steps):
            xs, ys = self._batch(x, y, k)
            weights = self._weights(adapted, k)
            values = self._forward(weights, xs)
            if keep and self.save:
                adapted.values.append(values)
            to = self._weights(adapted, k + 1).phi.value
            sink = Sink("step", to, to, *self._states(adapted, k), k)
            self._backward(weights, values, self._loss(values, ys, self.inner_loss), sink, lr)
        return adapted

    def apply(
        self, adapted: Adapted, steps: int, x: Tensor, y: Tensor, loss: LossRule, *, lam: Tensor | None,
        finite: Tensor | None = None, reptile: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `MLP.apply`."""
        weights = self._weights(adapted, steps)
        values = self._forward(weights, x)
        losses = x.new_empty(x.shape[0])
        if loss.name in ("mse", "cross_entropy"):
            self._losses(values, y, loss, losses, adapted.bad)
        if lam is not None and reptile:
            torch.sub(adapted.phis[-1], weights.phi.value, out=lam)
        elif lam is not None:
            self._backward(weights, values, self._loss(values, y, loss), Sink("store", lam, lam, lam, lam), None)
        self._finish(adapted, lam, finite)
        return values.xs[-1].value, losses

    def adjoint(
        self, adapted: Adapted, lam: Tensor, x: Tensor, y: Tensor, *, finite: Tensor | None = None,
        lr: Tensor | None = None,
    ) -> None:  # fmt: skip
        """As `MLP.adjoint`."""
        sigma, v = x.new_empty(x.shape[0], self.inner.states, self.chain.size), torch.empty_like(lam)
        for k in range(self.inner.steps - 1, -1, -1):
            xs, ys = self._batch(x, y, k)
            weights = self._weights(adapted, k)
            values = adapted.values[k] if adapted.values else None
            if self.inner.name == "adam":
                values = values or self._forward(weights, xs)
                sink = Sink("pull", v, lam, self._states(adapted, k)[0], sigma, k)
                self._backward(weights, values, self._loss(values, ys, self.inner_loss), sink, lr)
            else:
                self._pull(lam, sigma, v, k, lr)
            moving = Weights(Dual(weights.phi.value, v), weights.row)
            values = self._forward(moving, xs, values)
            dz = self._loss(values, ys, self.inner_loss)
            self._backward(moving, values, dz, Sink("add", lam, v, lam, lam, k), lr)
        self._finish(adapted, lam, finite)

    def _weights(self, adapted: Adapted, k: int) -> Weights:
        return Weights(Dual(adapted.final(adapted.bad.shape[0], k)), self.chain.size if k else 0)

    def _states(self, adapted: Adapted, k: int) -> tuple[Tensor, Tensor]:
        """The optimiser's states before and after step k."""
        return adapted.states[(k - 1) % adapted.sets], adapted.states[k % adapted.sets]

    def _batch(self, x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The samples of step k, taken from the support set cyclically."""
        samples, batch = x.shape[1], self.inner.batch
        if batch is None or batch == samples:
            return x, y
        rows = (torch.arange(batch, device=x.device) + k * batch) % samples
        return x.index_select(1, rows), y.index_select(1, rows)

    def _layer(self, i: int) -> dict[str, Any]:
        return {"IN": self.chain.dims[i], "OUT": self.chain.dims[i + 1], "P": self.chain.size}

    def _act(self, i: int) -> dict[str, Any]:
        return {"ACT": self.chain.acts[i], "A": self.chain.args[2 * i], "B": self.chain.args[2 * i + 1]}

    def _bias(self, i: int) -> int:
        """How far the bias lies behind the weight; 0 without one."""
        return self.chain.b_at[i] - self.chain.w_at[i] if self.chain.b_at[i] >= 0 else 0

    def _label(self, i: int, *rest: str) -> str:
        return " ".join((f"{self.chain.dims[i]}→{self.chain.dims[i + 1]}", *filter(None, rest)))

    def _forward(self, weights: Weights, x: Tensor, known: Values | None = None) -> Values:
        """Values, with their tangents where the weights move; those that are `known` are not computed again."""
        values = Values([], [Dual(x)])
        for i in range(len(self.chain.w_at)):
            z, y = self._room(i, x) if known is None else (known.zs[i].value, known.xs[i + 1].value)
            z_dot, y_dot = self._room(i, x) if weights.phi.dot is not None else (None, None)
            values.zs.append(Dual(z, z_dot))
            values.xs.append(Dual(y, y_dot))
            self._forward_layer(i, weights, values, primal=known is None)
        return values

    def _room(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """For z and y of a layer; one tensor where f is the identity."""
        shape = (*x.shape[:2], self.chain.dims[i + 1])
        dtype = torch.float32 if i + 1 == len(self.chain.w_at) else operand_type(self.precision)
        z = x.new_empty(shape)
        if self.chain.acts[i] == IDENTITY and z.dtype == dtype:
            return z, z
        return z, x.new_empty(shape, dtype=dtype)

    def _forward_layer(self, i: int, weights: Weights, values: Values, *, primal: bool) -> None:
        x, z, y = values.xs[i], values.zs[i], values.xs[i + 1]
        tasks, samples, inputs = x.value.shape
        outputs, dual = self.chain.dims[i + 1], z.dot is not None
        tiles = layer_tiles(self.precision, samples, inputs, outputs, dual=dual)
        tensors = (*x.both, z.both[0], y.both[0], z.both[1], y.both[1])
        launch(
            linear_forward_kernel, tiles.grid(tasks, samples, outputs), *weights.phi.both, *tensors, weights.row,
            self.chain.w_at[i], label=self._label(i, dual * "dual", (not primal) * "tangents"), N=samples,
            BIAS=self._bias(i), PRIMAL=primal, DUAL=dual,
            STORE_Y=y.value is not z.value, X_MOVES=x.dot is not None, **self._layer(i), **self._act(i),
            **tiles.constants("BN", "BO", "BI"),
        )  # fmt: skip

    def _loss(self, values: Values, y: Tensor, loss: LossRule) -> Dual:
        """Cotangents dz of the last layer."""
        dz = values.zs[-1].like(operand_type(self.precision))
        self._loss_kernel(values, y, loss, dz.value, dz, value=False)
        return dz

    def _losses(self, values: Values, y: Tensor, loss: LossRule, losses: Tensor, bad: Tensor) -> None:
        tasks, samples, classes = values.xs[-1].value.shape
        parts = losses.new_empty(tasks, triton.cdiv(samples, loss_tiles(classes)[0]))
        self._loss_kernel(values, y, loss, parts, values.zs[-1], value=True)
        launch(
            losses_kernel, (tasks,), parts, losses, bad, TILES=parts.shape[1],
            BLOCK=triton.next_power_of_2(parts.shape[1]), num_warps=4,
        )  # fmt: skip

    def _loss_kernel(self, values: Values, y: Tensor, loss: LossRule, parts: Tensor, dz: Dual, *, value: bool) -> None:
        outputs, dual = values.xs[-1], dz.dot is not None and not value
        tasks, samples, classes = outputs.value.shape
        rows, warps = loss_tiles(classes)
        launch(
            loss_kernel, (tasks * triton.cdiv(samples, rows),), *outputs.both, *values.zs[-1].both, y, parts, *dz.both,
            label=" ".join(filter(None, (loss.name, value * "value", dual * "dual"))), N=samples, C=classes, BN=rows,
            BC=block(classes), VALUE=value, BACKWARD=not value, DUAL=dual, num_warps=warps, **loss.constants(),
            **self._act(len(self.chain.w_at) - 1),
        )  # fmt: skip

    def _backward(self, weights: Weights, values: Values, dz: Dual, sink: Sink, lr: Tensor | None) -> None:
        for i in range(len(self.chain.w_at) - 1, -1, -1):
            self._weight_layer(i, weights, values.xs[i], dz, sink, lr)
            if i:
                dz = self._backward_layer(i, weights, values.zs[i - 1], dz)

    def _weight_layer(self, i: int, weights: Weights, x: Dual, dz: Dual, sink: Sink, lr: Tensor | None) -> None:
        tasks, samples, inputs = x.value.shape
        outputs, dual, k = dz.value.shape[2], dz.dot is not None, sink.step
        tiles = weight_tiles(self.precision, samples, inputs, outputs)
        schedule = self.inner.schedule(x.value.device)
        row = schedule[k] if self.inner.steps else schedule
        launch(
            linear_weight_kernel, tiles.grid(tasks, outputs, inputs), weights.phi.value, *dz.both, *x.both, sink.to,
            sink.with_, sink.state, sink.next, row if lr is None else lr[k], row, weights.row, self.chain.w_at[i],
            int(k == 0), int(k == self.inner.steps - 1), label=self._label(i, dual * "dual", sink.name), N=samples,
            BIAS=self._bias(i), DUAL=dual, X_MOVES=x.dot is not None, SINK=sink.name, LR_EACH=lr is not None,
            **self.inner.constants(), **self._layer(i), **tiles.constants("BO", "BI", "BN"),
        )  # fmt: skip

    def _backward_layer(self, i: int, weights: Weights, z: Dual, dz: Dual) -> Dual:
        """Cotangents of the z before layer i."""
        tasks, samples, outputs = dz.value.shape
        inputs, dual = self.chain.dims[i], dz.dot is not None
        tiles = layer_tiles(self.precision, samples, outputs, inputs, dual=dual)
        dx = z.like(dz.value.dtype)
        launch(
            linear_backward_kernel, tiles.grid(tasks, samples, inputs), *weights.phi.both, *dz.both, *z.both, *dx.both,
            weights.row, self.chain.w_at[i], label=self._label(i, dual * "dual"), N=samples, DUAL=dual,
            **self._layer(i), **self._act(i - 1), **tiles.constants("BN", "BI", "BO"),
        )  # fmt: skip
        return dx

    def _pull(self, lam: Tensor, sigma: Tensor, v: Tensor, k: int, lr: Tensor | None) -> None:
        row = self.inner.schedule(lam.device)[k]
        launch(
            pull_kernel, (lam.shape[0] * triton.cdiv(self.chain.size, _WIDTH),), lam, sigma, v,
            row if lr is None else lr[k], row, int(k == self.inner.steps - 1), P=self.chain.size, BLOCK=_WIDTH,
            STATES=self.inner.states, HYPER=self.inner.hyper, LR_EACH=lr is not None, num_warps=4,
        )  # fmt: skip

    def _finish(self, adapted: Adapted, lam: Tensor | None, finite: Tensor | None) -> None:
        if finite is not None:
            launch(
                finite_kernel, adapted.bad.shape, adapted.bad if lam is None else lam, adapted.bad, finite,
                P=0 if lam is None else self.chain.size, BLOCK=4 * _WIDTH, num_warps=8,
            )  # fmt: skip
