"""Launches a network stage by stage, where `mlp_loop` does not hold it: any width, any number of samples, convolutions.

A stage is a linear layer, a convolution with what is behind it, a sum of branches or a mean over positions; the
launchers of each kind are in files of their own, and `tail.py` has those of the last layer with the loss. Going back, d
is the cotangent of what a stage's `below` names: a linear layer's pre-activations, the others' outputs.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from .activation import IDENTITY
from .block_stage import BlockStage
from .conv_stage import ConvStage
from .description import Adapted, Conv, GlobalMean, InnerRule, Linear, LossRule, Network, Rates, Sum
from .launch import also, counters, launch
from .linear_stage import LinearStage
from .mean_over_tasks import finite_kernel, inputs_kernel
from .mean_stage import MeanStage
from .sink import pull_kernel
from .sum_stage import SumStage
from .sweep import Below, Cotangent, Dual, Sink, Weights
from .tail import HeadTail, LinearTail, Target, Values
from .tiles import head_tiles, row_shares

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
        """What launches each of the network's stages but the last."""

        def launcher(at: int) -> Any:
            stage, size = self.network.stages[at], self.network.size
            match stage:
                case Conv():
                    return ConvStage.of(stage, size, self.precision, first=self.network.sources[at] == (-1,))
                case Sum():
                    return SumStage(stage, size, self.precision, "sum")
                case GlobalMean():
                    return MeanStage(stage, size, self.precision)
                case Linear():
                    return LinearStage(stage, size, self.precision, last=False)

        return [launcher(at) for at in range(len(self.network.stages) - 1)]

    @cached_property
    def tail(self) -> LinearTail | HeadTail:
        """What launches the last stage and the loss."""
        layer, size = self.network.stages[-1], self.network.size
        assert isinstance(layer, Linear), "the last stage is linear"
        below = self.stages[-1] if self.stages else None
        if isinstance(below, BlockStage) and layer.act.kind == IDENTITY:
            pixels, channels = below.block.pooled[0] * below.block.pooled[1], below.block.filters
            if head_tiles(self.precision, 1, pixels, channels, layer.outputs) is not None:
                return HeadTail(layer, size, self.precision, pixels, channels)
        return LinearTail(LinearStage(layer, size, self.precision, last=True))

    @cached_property
    def _zeros(self) -> dict[Hashable, Tensor]:
        """Counters of launches, every stream's own."""
        return {}

    @cached_property
    def _rows(self) -> dict[Hashable, Tensor]:
        """Places of the samples of inner batches."""
        return {}

    def adapt(
        self, theta: list[Tensor], x: Tensor, y: Tensor, *, rates: Tensor, keep: bool, directions: Tensor | None = None
    ) -> Adapted:
        """As `MLP.adapt`."""
        learning = Rates.of(self.inner, rates, directions, x.shape[0], self.network.size)
        adapted = self.inner.start(theta, x, keep=keep)
        self._over_rows(inputs_kernel, x[0].numel(), x, adapted.bad)
        for k in range(self.inner.steps):
            xs, ys = self._batch(x, y, k)
            weights = self._weights(adapted, k)
            values = self._forward(weights, xs)
            if keep and self.save:
                adapted.values.append(values)
            to = self._weights(adapted, k + 1).phi.value
            sink = self._sink("step", to, to, *self._states(adapted, k), k, learning)
            self._backward(weights, values, Target(self.inner_loss, ys), sink)
        return adapted

    def apply(
        self, adapted: Adapted, steps: int, x: Tensor, y: Tensor, loss: LossRule, *, lam: Tensor | None,
        finite: Tensor | None = None, reptile: bool = False, statistics_rows: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `MLP.apply`.

        Batch norms take their statistics from the first `statistics_rows` samples, which are in no loss; 0: from all.
        """
        weights = self._weights(adapted, steps)
        values = self._forward(weights, x, rows=statistics_rows or x.shape[1])
        losses = x.new_empty(x.shape[0])
        target, value = Target(loss, y, statistics_rows), Values(losses, adapted.bad)
        if lam is None or reptile:
            outputs = self.tail.value(weights, values[-1], target, value)
        else:
            sink = self._sink("store", lam, lam, lam, lam)
            outputs = self._backward(weights, values, target, sink, None if loss.name == "given" else value)
        if lam is not None and reptile:
            also(torch.sub, adapted.phis[-1], weights.phi.value, out=lam)
        self._finish(adapted, lam, finite)
        return outputs, losses

    def adjoint(
        self, adapted: Adapted, lam: Tensor, x: Tensor, y: Tensor, *, rates: Tensor, finite: Tensor | None = None,
        directions: Tensor | None = None,
    ) -> None:  # fmt: skip
        """As `MLP.adjoint`.

        Tangents double a step's values. Where those are computed again, for the sake of memory, tasks go in two halves,
        so that no more is held than for a gradient (Conv4, 20 + 20 samples: 1.14 instead of 1.69 times first-order
        MAML's peak).
        """
        tasks = x.shape[0]
        learning = Rates.of(self.inner, rates, directions, tasks, self.network.size)
        middle = tasks if self.save else -(-tasks // 2)
        for part in filter(len, (range(middle), range(middle, tasks))):
            of = slice(part.start, part.stop)
            self._adjoint(adapted, of, lam[of], x[of], y[of], learning.part(of))
        self._finish(adapted, lam, finite)

    def _adjoint(self, adapted: Adapted, of: slice, lam: Tensor, x: Tensor, y: Tensor, learning: Rates) -> None:
        sigma, v = x.new_empty(x.shape[0], self.inner.states, self.network.size), torch.empty_like(lam)
        for k in range(self.inner.steps - 1, -1, -1):
            xs, ys = self._batch(x, y, k)
            phi, row = self._weights(adapted, k)
            weights, target = Weights(Dual(phi.value[of]), row), Target(self.inner_loss, ys)
            values = adapted.values[k] if adapted.values else None
            if self.inner.name == "adam":
                values = values or self._forward(weights, xs)
                sink = self._sink("pull", v, lam, self._states(adapted, k)[0][of], sigma, k, learning)
                self._backward(weights, values, target, sink)
            else:
                self._pull(lam, sigma, v, k, learning)
            moving = Weights(Dual(weights.phi.value, v), row)
            values = self._forward(moving, xs, values)
            self._backward(moving, values, target, self._sink("add", lam, v, lam, lam, k, learning))

    def _weights(self, adapted: Adapted, k: int) -> Weights:
        return Weights(Dual(adapted.final(adapted.bad.shape[0], k)), self.network.size // 4 if k else 0)

    def _states(self, adapted: Adapted, k: int) -> tuple[Tensor, Tensor]:
        """The optimiser's states before and after step k."""
        return adapted.states[(k - 1) % adapted.sets], adapted.states[k % adapted.sets]

    def _batch(self, x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The samples of step k, taken from the support set cyclically."""
        samples, batch = x.shape[1], self.inner.batch
        if batch is None or batch == samples:
            return x, y
        key = x.device, samples, k * batch % samples
        if key not in self._rows:
            self._rows[key] = (torch.arange(batch, device=x.device) + k * batch) % samples
        taken = [z.new_empty(z.shape[0], batch, *z.shape[2:]) for z in (x, y)]
        for z, into in zip((x, y), taken, strict=True):
            also(torch.index_select, z, 1, self._rows[key], out=into)
        return taken[0], taken[1]

    def _sink(
        self, name: str, to: Tensor, with_: Tensor, state: Tensor, next_: Tensor, k: int = 0,
        learning: Rates | None = None,
    ) -> Sink:  # fmt: skip
        """Where the gradients of inner step k go; those that are kept ask for no rates."""
        rows, switches = (to, to, to), {"LR_EACH": False, "DIRECTIONS": False}
        if learning is not None:
            alpha, schedule, u = learning
            rows, switches = (alpha[k], schedule[k], to if u is None else u[k]), learning.constants()
        return Sink(
            (to, with_, state, next_, *rows),
            (int(k == 0), int(k == self.inner.steps - 1)),
            {"SINK": name, **switches, **self.inner.constants()},
            lambda count: counters(self._zeros, to.device, count),
        )

    def _forward(self, weights: Weights, x: Tensor, known: list[Any] | None = None, rows: int = 0) -> list[Any]:
        """Every stage's values, with their tangents where the weights move; `known` ones are not computed again."""
        values: list[Any] = []

        def inputs(at: int) -> tuple[Dual, ...]:
            return tuple(Dual(x) if source < 0 else values[source].y for source in self.network.sources[at])

        for at, stage in enumerate(self.stages):
            before = None if known is None else known[at]
            values.append(stage.forward(weights, inputs(at), before, rows or x.shape[1]))
        (last,) = inputs(-1)
        values.append(self.tail.forward(weights, last, None if known is None else known[-1]))
        return values

    def _backward(
        self, weights: Weights, values: list[Any], target: Target, sink: Sink, value: Values | None = None
    ) -> Tensor:
        """Gradients to the sink; the outputs, with losses where `value` asks for them."""
        found: dict[int, Cotangent] = {}

        def below(source: int) -> Below | None:
            if source < 0:
                return None
            into = found[source].d if source in found else None
            return self.stages[source].below(values[source], into, alone=self.network.readers(source) == 1)

        (source,) = self.network.sources[-1]
        outputs, d = self.tail.backward(weights, values[-1], target, sink, below(source), value)
        if d is not None:
            found[source] = d
        for at in range(len(self.stages) - 1, -1, -1):
            sources = self.network.sources[at]
            made = self.stages[at].backward(weights, values[at], found.pop(at), sink, tuple(map(below, sources)))
            found |= zip((source for source in sources if source >= 0), made, strict=True)
        return outputs

    def _pull(self, lam: Tensor, sigma: Tensor, v: Tensor, k: int, learning: Rates) -> None:
        launch(
            pull_kernel, (lam.shape[0] * triton.cdiv(self.network.size, _WIDTH),), lam, sigma, v, learning.alpha[k],
            learning.schedule[k], int(k == self.inner.steps - 1), P=self.network.size, BLOCK=_WIDTH,
            STATES=self.inner.states, HYPER=self.inner.hyper, LR_EACH=learning.constants()["LR_EACH"], num_warps=4,
        )  # fmt: skip

    def _finish(self, adapted: Adapted, lam: Tensor | None, finite: Tensor | None) -> None:
        if finite is not None:
            rows, size = (adapted.bad, 0) if lam is None else (lam, self.network.size)
            self._over_rows(finite_kernel, size, rows, adapted.bad, finite)

    def _over_rows(self, kernel: Any, size: int, *tensors: Tensor) -> None:
        """A launch over a row of so many values of every task."""
        bad = tensors[1]
        programs, options = row_shares(size, bad.shape[0])
        parts = bad.new_empty(bad.shape[0], options["SHARES"])
        launch(kernel, (programs,), *tensors, parts, counters(self._zeros, bad.device, bad.shape[0]), **options)
