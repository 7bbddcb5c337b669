"""Launches a network stage by stage, where `mlp_loop` does not hold it: any width, any number of samples, convolutions.

A stage is a linear layer, a convolution with what is behind it, or a mean over positions; the launchers of each kind
are in files of their own. Going back, d is the cotangent of what a stage's `before` names: a linear layer's
pre-activations, the others' outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from .conv_stage import ConvStage
from .description import Adapted, Conv, GlobalMean, InnerRule, Linear, LossRule, Network
from .launch import launch
from .linear_stage import LinearStage
from .loss import loss_kernel
from .mean_over_tasks import finite_kernel, inputs_kernel, losses_kernel
from .mean_stage import MeanStage
from .sink import pull_kernel
from .sweep import Dual, Sink, Weights
from .tiles import block, loss_tiles, operand_type

_WIDTH = 1024  # values of a program that goes over a row


@dataclass(frozen=True)
class Layerwise:
    """One network, inner loop and precision, with the functions of `mlp.MLP`; images are [T, N, H, W, C].

    `save` keeps every inner step's values for the adjoint, which otherwise computes them again.
    """

    network: Network
    inner: InnerRule
    inner_loss: LossRule
    precision: str  # "float32", "tf32" or "bfloat16"
    save: bool

    @cached_property
    def stages(self) -> list[Any]:
        """What launches each of the network's stages."""
        launchers = {Linear: LinearStage, Conv: ConvStage, GlobalMean: MeanStage}
        stages = self.network.stages
        return [
            launchers[type(stage)](stage, self.network.size, self.precision, stage is stages[-1]) for stage in stages
        ]

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
            sink = self._sink("step", to, to, *self._states(adapted, k), k, lr)
            self._backward(weights, values, self._loss(values, ys, self.inner_loss), sink)
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
            sink = self._sink("store", lam, lam, lam, lam)
            self._backward(weights, values, self._loss(values, y, loss), sink)
        self._finish(adapted, lam, finite)
        return values[-1].y.value, losses

    def adjoint(
        self, adapted: Adapted, lam: Tensor, x: Tensor, y: Tensor, *, finite: Tensor | None = None,
        lr: Tensor | None = None,
    ) -> None:  # fmt: skip
        """As `MLP.adjoint`."""
        sigma, v = x.new_empty(x.shape[0], self.inner.states, self.network.size), torch.empty_like(lam)
        for k in range(self.inner.steps - 1, -1, -1):
            xs, ys = self._batch(x, y, k)
            weights = self._weights(adapted, k)
            values = adapted.values[k] if adapted.values else None
            if self.inner.name == "adam":
                values = values or self._forward(weights, xs)
                sink = self._sink("pull", v, lam, self._states(adapted, k)[0], sigma, k, lr)
                self._backward(weights, values, self._loss(values, ys, self.inner_loss), sink)
            else:
                self._pull(lam, sigma, v, k, lr)
            moving = Weights(Dual(weights.phi.value, v), weights.row)
            values = self._forward(moving, xs, values)
            dz = self._loss(values, ys, self.inner_loss)
            self._backward(moving, values, dz, self._sink("add", lam, v, lam, lam, k, lr))
        self._finish(adapted, lam, finite)

    def _weights(self, adapted: Adapted, k: int) -> Weights:
        return Weights(Dual(adapted.final(adapted.bad.shape[0], k)), self.network.size if k else 0)

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

    def _sink(
        self, name: str, to: Tensor, with_: Tensor, state: Tensor, next_: Tensor, k: int = 0, lr: Tensor | None = None
    ) -> Sink:
        """Where the gradients of inner step k go."""
        schedule = self.inner.schedule(to.device)
        row = schedule[k] if self.inner.steps else schedule
        return Sink(
            (to, with_, state, next_, row if lr is None else lr[k], row),
            (int(k == 0), int(k == self.inner.steps - 1)),
            {"SINK": name, "LR_EACH": lr is not None, **self.inner.constants()},
        )

    def _forward(self, weights: Weights, x: Tensor, known: list[Any] | None = None) -> list[Any]:
        """Every stage's values, with their tangents where the weights move; `known` ones are not computed again."""
        values: list[Any] = []
        at = Dual(x)
        for i, stage in enumerate(self.stages):
            values.append(stage.forward(weights, at, None if known is None else known[i]))
            at = values[-1].y
        return values

    def _backward(self, weights: Weights, values: list[Any], d: Dual, sink: Sink) -> None:
        for i in range(len(self.stages) - 1, -1, -1):
            before = self.stages[i - 1].before(values[i - 1]) if i else None
            d = self.stages[i].backward(weights, values[i], d, sink, before)

    def _loss(self, values: list[Any], y: Tensor, loss: LossRule) -> Dual:
        """Cotangents dz of the last layer."""
        dz = values[-1].z.like(operand_type(self.precision))
        self._loss_kernel(values, y, loss, dz.value, dz, value=False)
        return dz

    def _losses(self, values: list[Any], y: Tensor, loss: LossRule, losses: Tensor, bad: Tensor) -> None:
        tasks, samples, classes = values[-1].y.value.shape
        parts = losses.new_empty(tasks, triton.cdiv(samples, loss_tiles(classes)[0]))
        self._loss_kernel(values, y, loss, parts, values[-1].z, value=True)
        launch(
            losses_kernel, (tasks,), parts, losses, bad, TILES=parts.shape[1],
            BLOCK=triton.next_power_of_2(parts.shape[1]), num_warps=4,
        )  # fmt: skip

    def _loss_kernel(
        self, values: list[Any], y: Tensor, loss: LossRule, parts: Tensor, dz: Dual, *, value: bool
    ) -> None:
        outputs, dual = values[-1].y, dz.dot is not None and not value
        tasks, samples, classes = outputs.value.shape
        rows, warps = loss_tiles(classes)
        launch(
            loss_kernel, (tasks * triton.cdiv(samples, rows),), *outputs.both, *values[-1].z.both, y, parts, *dz.both,
            label=" ".join(filter(None, (loss.name, value * "value", dual * "dual"))), N=samples, C=classes, BN=rows,
            BC=block(classes), VALUE=value, BACKWARD=not value, DUAL=dual, num_warps=warps, **loss.constants(),
            **self.stages[-1].layer.act.constants(),
        )  # fmt: skip

    def _pull(self, lam: Tensor, sigma: Tensor, v: Tensor, k: int, lr: Tensor | None) -> None:
        row = self.inner.schedule(lam.device)[k]
        launch(
            pull_kernel, (lam.shape[0] * triton.cdiv(self.network.size, _WIDTH),), lam, sigma, v,
            row if lr is None else lr[k], row, int(k == self.inner.steps - 1), P=self.network.size, BLOCK=_WIDTH,
            STATES=self.inner.states, HYPER=self.inner.hyper, LR_EACH=lr is not None, num_warps=4,
        )  # fmt: skip

    def _finish(self, adapted: Adapted, lam: Tensor | None, finite: Tensor | None) -> None:
        if finite is not None:
            launch(
                finite_kernel, adapted.bad.shape, adapted.bad if lam is None else lam, adapted.bad, finite,
                P=0 if lam is None else self.network.size, BLOCK=4 * _WIDTH, num_warps=8,
            )  # fmt: skip
