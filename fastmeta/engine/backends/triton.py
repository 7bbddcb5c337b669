"""The engine's functions on Triton kernels: same interface as the torch backend, whole loops in single launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from fastmeta.engine.meta_step import Engine, MetaGradient, TaskResults
from fastmeta.engine.objective import Context, Data
from fastmeta.kernels import description  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]  # mapped by setup.py
from fastmeta.kernels.activation import KINDS  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.kernels.description import Adapted, Chain, InnerRule, LossRule  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.kernels.layerwise import Layerwise  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.kernels.mlp import MLP, mean_over_tasks  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.kernels.tiles import DEEPEST, MOST  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.ops.base import Loss
from fastmeta.ops.cross_entropy import CrossEntropy
from fastmeta.ops.mse import MSE
from fastmeta.optim import InnerOptimizer
from fastmeta.optim.adam import Adam
from fastmeta.program.layout import Layout

from .convnet import Block, GlobalMean, Graph, Stage, Sum
from .perceptron import Layer


def fits_loop(engine: Engine, layers: Sequence[Layer]) -> bool:
    """Whether `mlp_loop` takes the perceptron; else it runs layer by layer."""
    samples = [plan.output_shapes[0][0] for plan in (engine.loop.objective.plan, engine.outer.plan)]
    widths = [size for layer in layers for size in (layer.inputs, layer.outputs)]
    return max(*samples, *widths) <= MOST and len(layers) <= DEEPEST


class TritonBackend:
    """A perceptron on the kernels of `mlp_loop`, or a network stage by stage: convolutions, or where it is too large.

    With `bn_statistics="support"` the support set comes in front of the query set, as the engine has it.

    Rows of parameters are the layout's, [T, P]. Inside convolutions' weights have their channels last, and what comes
    in and goes out is put in order.

    Args:
        engine: the engine for one set of shapes.
        graph: its program, as `perceptron` or `convnet` found it.
        tasks: T.
        chunk: tasks a slice; None: all at once.
        precision: of matrix products, "float32", "tf32" or "bfloat16".
    """

    def __init__(self, engine: Engine, graph: Graph, tasks: int, *, chunk: int | None, precision: str) -> None:
        self.engine, self.chunk = engine, chunk
        layout = engine.outer.layout
        self._still = torch.zeros(tasks, dtype=torch.int64, device=layout.device)
        size = chunk or tasks
        self.slices = [slice(at, min(at + size, tasks)) for at in range(0, tasks, size)]
        loop = engine.loop
        assert loop.objective.loss is not None, "an inner loop has a loss"
        rules = (
            _inner_rule(loop.optimizer, loop.steps, loop.batch), _loss_rule(loop.objective.loss), precision,
        )  # fmt: skip
        self._corrections = rules[0].corrections(layout.device)  # the cache may drop it, a CUDA graph holds its place
        rates = torch.full((loop.steps,), loop.optimizer.lr, dtype=torch.float32, device=layout.device)
        self._rates = rules[0].schedule(rates)  # made once: it is a copy, and the rate stays
        layers = [stage for stage in graph.stages if isinstance(stage, Layer)]
        self._images = len(layers) < len(graph.stages)
        if not self._images and fits_loop(engine, layers):
            self.how, self._kernels = "Triton kernels of mlp_loop", MLP(_chain(layers, layout), *rules)
        else:
            self.how = f"Triton kernels of {'conv_block and linear' if self._images else 'linear'}"
            self._kernels = Layerwise(_network(graph, layout), *rules, save=not loop.recompute)
        self._lent = engine.outer.skip  # samples in front of the queries, which lend their statistics
        self._statistics = {"lent": self._lent} if self._lent else {}
        order = _order(graph, layout) if self._images else None
        self._order = order
        self._inverse = None if order is None else order.argsort()
        self._known = isinstance(engine.outer.loss, MSE | CrossEntropy)
        self._pads = [
            torch.zeros(pad, dtype=layout.dtype, device=layout.device) if pad else None for pad in layout.padding
        ]

    def keys(self) -> Tensor:
        """No kernel draws random numbers, so all tasks' keys are zero."""
        return self._still

    def _theta(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The pieces of θ as a row [P] of the kernels'."""
        pieces: list[Tensor] = []
        for p, pad in zip(params, self._pads, strict=True):
            pieces += [p.detach().reshape(-1)] if pad is None else [p.detach().reshape(-1), pad]
        return pieces if self._order is None else [torch.cat(pieces)[self._order]]

    def _inside(self, rows: Tensor) -> Tensor:
        """Rows [..., P] of parameters in the kernels' order."""
        return rows if self._order is None else rows.index_select(-1, self._order)

    def _outside(self, rows: Tensor) -> Tensor:
        """Rows [..., P] in the layout's order again."""
        return rows if self._inverse is None else rows.index_select(-1, self._inverse)

    def _inputs(self, x: Tensor) -> Tensor:
        """Inputs [T, N, ...] as the kernels read them: [T, N, D], or images [T, N, H, W, C]."""
        if not self._images:
            return x.reshape(*x.shape[:2], prod(x.shape[2:])).contiguous()
        first = self._kernels.network.stages[0]  # pyright: ignore[reportAttributeAccessIssue]  # images run stage by stage
        x = x.reshape(*x.shape[:2], first.channels, first.height, first.width)
        return x.permute(0, 1, 3, 4, 2).contiguous()

    def _support(self, support: Data) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the tasks."""
        return self._inputs(support.inputs[0]), support.targets[0].contiguous()

    def _adapt(self, params: Sequence[Tensor], support: tuple[Tensor, Tensor], *, keep: bool) -> Adapted:
        keep = keep and self.engine.order == "exact"
        return self._kernels.adapt(self._theta(params), *support, rates=self._rates, keep=keep)

    def meta_step(
        self, params: Sequence[Tensor], support: Data, query: Data, context: Context, *, keep: bool
    ) -> MetaGradient:
        """Losses, outputs and, where `keep` says so, the meta-gradient and each task's share of it."""
        parts = [self._slice(params, support.take(s, 0), query.take(s, 0), keep=keep) for s in self.slices]
        tasks = parts[0] if len(parts) == 1 else TaskResults.joined(parts)
        if tasks.lam is None:
            return MetaGradient.of(tasks)
        gradient, loss = mean_over_tasks(tasks.lam, tasks.losses, tasks.finite)
        return MetaGradient(loss, gradient, tasks)

    def _slice(self, params: Sequence[Tensor], support: Data, query: Data, *, keep: bool) -> TaskResults:
        loop, outer, order = self.engine.loop, self.engine.outer, self.engine.order
        data = self._support(support)
        adapted = self._adapt(params, data, keep=keep)
        x = self._inputs(query.inputs[0])
        tasks, steps = x.shape[0], loop.steps
        exact = keep and order == "exact"
        lam = x.new_empty(tasks, self.engine.outer.layout.size) if keep else None
        finite = x.new_empty(tasks, dtype=torch.uint8)
        last = None if exact and steps else finite  # the last launch finds the tasks that are not finite
        if self._known:
            y, rule = query.targets[0].contiguous(), _loss_rule(outer.loss)
            outputs, losses = self._query_pass(
                adapted, steps, x, y, rule, lam=lam, finite=last, reptile=keep and order == "reptile"
            )
        else:
            outputs, losses = self._own_loss(adapted, x, query, lam=lam, finite=last)
        if lam is not None and exact and steps:
            self._kernels.adjoint(adapted, lam, *data, rates=self._rates, finite=finite)
        lam = None if lam is None else self._outside(lam)
        return TaskResults(losses, [outputs], finite.view(torch.bool), lam)

    def _query_pass(
        self, adapted: Adapted, steps: int, x: Tensor, y: Tensor, rule: LossRule, *, lam: Tensor | None,
        finite: Tensor | None = None, reptile: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The kernels' `apply`: outputs of the queries [T, M, ...], and losses [T]."""
        outputs, losses = self._kernels.apply(
            adapted, steps, x, y, rule, lam=lam, finite=finite, reptile=reptile, **self._statistics
        )
        _, *shape = self.engine.outer.plan.output_shapes[0]
        return outputs.view(*x.shape[:2], *shape)[:, self._lent :], losses

    def _own_loss(
        self, adapted: Adapted, x: Tensor, query: Data, *, lam: Tensor | None, finite: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The query pass with an outer loss of the user's, whose sweeps are torch's, between two launches."""
        loss, steps = self.engine.outer.loss, self.engine.loop.steps
        assert loss is not None, "a meta-step has an outer loss"
        outputs, _ = self._query_pass(adapted, steps, x, x, LossRule("none"), lam=None)
        losses, saved = loss.forward(outputs, *query.targets)
        adapted.bad.add_(losses - losses)
        needs = (True, *(False,) * len(query.targets))
        d = loss.backward(saved, None, needs)[0]
        d = torch.zeros_like(outputs) if d is None else d.contiguous()
        reptile = lam is not None and self.engine.order == "reptile"
        if lam is not None or finite is not None:
            self._kernels.apply(
                adapted, steps, x, d, LossRule("given"), lam=lam, finite=finite, reptile=reptile, **self._statistics
            )
        return outputs, losses

    def adapt(
        self, params: Sequence[Tensor], support: Data, context: Context, *, keep: bool
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """φ_K [T, P], and the function λ_K → λ_0, which may be called again."""
        steps, order = self.engine.loop.steps, self.engine.order
        data = [self._support(support.take(s, 0)) for s in self.slices]
        runs = [self._adapt(params, part, keep=keep) for part in data]

        def adjoint(lam: Tensor) -> Tensor:
            if order != "exact" or not steps:
                return lam
            lam = self._inside(lam)
            lam = lam.clone(memory_format=torch.contiguous_format) if self._order is None else lam
            for run, part, s in zip(runs, data, self.slices, strict=True):
                self._kernels.adjoint(run, lam[s], *part, rates=self._rates)
            return self._outside(lam)

        finals = [run.final(s.stop - s.start, steps) for run, s in zip(runs, self.slices, strict=True)]
        return self._outside(torch.cat(finals)), adjoint

    def apply(
        self, phi: Tensor, inputs: tuple[Tensor, ...], context: Context
    ) -> tuple[list[Tensor], Callable[[Sequence[Tensor | None]], Tensor]]:
        """Outputs [T, M, ...] at φ [T, P], and the function of their cotangents to φ's."""
        x, phi = self._inputs(inputs[0]), self._inside(phi).contiguous()
        at = Adapted(phi, phi, 1, phi.new_zeros(phi.shape[0]), [])
        outputs, _ = self._query_pass(at, 1, x, x, LossRule("none"), lam=None)

        def pullback(d_outputs: Sequence[Tensor | None]) -> Tensor:
            (d,) = d_outputs
            lam = torch.zeros_like(at.phis)
            if d is not None:
                self._kernels.apply(at, 1, x, d.contiguous(), LossRule("given"), lam=lam, **self._statistics)
            return self._outside(lam)

        return [outputs], pullback


def _chain(layers: list[Layer], layout: Layout) -> Chain:
    args: list[float] = []
    for layer in layers:
        args += [*layer.args, 0.0, 0.0][:2]
    return Chain(
        (layers[0].inputs, *(layer.outputs for layer in layers)),
        tuple(layout.offsets[layer.weight] for layer in layers),
        tuple(-1 if layer.bias is None else layout.offsets[layer.bias] for layer in layers),
        tuple(KINDS.index(layer.kind) for layer in layers),
        tuple(map(float, args)),
        layout.size,
    )


def _network(graph: Graph, layout: Layout) -> description.Network:
    """The kernels' description of a network."""

    def at(place: int | None) -> int:
        return -1 if place is None else layout.offsets[place]

    def described(s: Stage) -> description.Stage:
        if isinstance(s, GlobalMean):
            channels, *sides = s.image
            return description.GlobalMean(prod(sides), channels)
        act = description.Act(KINDS.index(s.kind), *map(float, [*s.args, 0.0, 0.0][:2]))
        if isinstance(s, Layer):
            return description.Linear(s.inputs, s.outputs, at(s.weight), at(s.bias), act)
        channels, height, width = s.image
        if isinstance(s, Sum):
            return description.Sum(height, width, channels, act, s.pool)
        return description.Conv(
            height, width, channels, s.filters, s.kernel, s.stride, s.padding, at(s.weight), at(s.bias),
            s.eps is not None, s.eps or 0.0, at(s.gamma), at(s.beta), act, s.pool,
        )  # fmt: skip

    return description.Network(tuple(map(described, graph.stages)), tuple(graph.sources), layout.size)


def _order(graph: Graph, layout: Layout) -> Tensor:
    """Where each of the kernels' P values lies in the layout [P].

    Convolutions' weights are [O, C, kernel, kernel] there and [O, kernel, kernel, C] here; the columns of a linear
    layer that sees flattened images are [C, H, W] there and [H, W, C] here.
    """
    order = torch.arange(layout.size)
    for stage, (source, *_) in zip(graph.stages, graph.sources, strict=True):
        if isinstance(stage, Block):
            shape = (stage.filters, stage.image[0], stage.kernel**2)
        elif isinstance(stage, Layer) and isinstance(below := graph.stages[source], Block | Sum):
            channels, height, width = below.out
            shape = (stage.outputs, channels, height * width)
        else:
            continue
        at = layout.offsets[stage.weight]
        piece = order[at : at + prod(shape)]
        piece.copy_(piece.clone().view(shape).transpose(1, 2).reshape(-1))
    return order.to(layout.device)


def _inner_rule(optimizer: InnerOptimizer, steps: int, batch: int | None) -> InnerRule:
    if isinstance(optimizer, Adam):
        return InnerRule("adam", (*optimizer.betas, optimizer.eps), steps, batch)
    hyper = (optimizer.momentum, float(optimizer.nesterov), optimizer.weight_decay)
    return InnerRule("sgd", hyper, steps, batch)


def _loss_rule(loss: Loss | None) -> LossRule:
    if isinstance(loss, CrossEntropy):
        return LossRule("cross_entropy", loss.label_smoothing, loss.ignore_index)
    return LossRule("mse")
