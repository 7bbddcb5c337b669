"""The engine's functions on Triton kernels: same interface as the torch backend, whole loops in single launches."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fastmeta.engine.adjoint import Cotangents
from fastmeta.engine.meta_step import (
    Engine,
    MetaGradient,
    MetaInputs,
    TaskResults,
    finite_count,
    only_finite,
    over_tasks,
)  # fmt: skip
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
from fastmeta.optim.base import InnerRule as Rule
from fastmeta.optim.base import State
from fastmeta.program.layout import Layout

from .base import Adapted as Adaptation
from .base import Planned, Pullback
from .convnet import Block, GlobalMean, Graph, Stage, Sum
from .perceptron import Layer


def fits_loop(engine: Engine, layers: Sequence[Layer]) -> bool:
    """Whether `mlp_loop` takes the perceptron; else it runs layer by layer."""
    samples = [plan.output_shapes[0][0] for plan in (engine.loop.objective.plan, engine.outer.plan)]
    widths = [size for layer in layers for size in (layer.inputs, layer.outputs)]
    return max(*samples, *widths) <= MOST and len(layers) <= DEEPEST


class TritonBackend(Planned):
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
        super().__init__(engine)
        self.chunk = chunk
        layout = engine.outer.layout
        self._zero_keys = torch.zeros(tasks, dtype=torch.int64, device=layout.device)
        size = chunk or tasks
        self.slices = [slice(at, min(at + size, tasks)) for at in range(0, tasks, size)]
        loop = engine.loop
        assert loop.objective.loss is not None, "an inner loop has a loss"
        rules = (
            _inner_rule(loop.rule, loop.steps, loop.batch), _loss_rule(loop.objective.loss), precision,
        )  # fmt: skip
        self._corrections = rules[0].corrections(layout.device)  # the cache may drop it, a CUDA graph holds its place
        self._rule = rules[0]
        layers = [stage for stage in graph.stages if isinstance(stage, Layer)]
        self._images = len(layers) < len(graph.stages)
        if not self._images and fits_loop(engine, layers):
            self.runs_by, self.kernels = "Triton kernels of mlp_loop", MLP(_chain(layers, layout), *rules)
        else:
            self.runs_by = f"Triton kernels of {'conv_block and linear' if self._images else 'linear'}"
            self.kernels = Layerwise(_network(graph, layout), *rules, save=not loop.recompute)
        self._skip = engine.outer.skip  # support samples in front of the queries, whose statistics batch norm takes
        self._statistics = {"statistics_rows": self._skip} if self._skip else {}
        order = _order(graph, layout) if self._images else None
        self._order = order
        self._inverse = None if order is None else order.argsort()
        self._known = isinstance(engine.outer.loss, MSE | CrossEntropy)
        self._pads = [
            torch.zeros(pad, dtype=layout.dtype, device=layout.device) if pad else None for pad in layout.padding
        ]

    def keys(self) -> Tensor:
        """No kernel draws random numbers, so all tasks' keys are zero."""
        return self._zero_keys

    def _theta(self, at: MetaInputs) -> list[Tensor]:
        """The pieces of φ_0 as a row [P] of the kernels'."""
        if isinstance(at.start, Tensor):
            return [self._inside(at.start.detach()).contiguous()]
        params = at.start
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
        first = self.kernels.network.stages[0]  # pyright: ignore[reportAttributeAccessIssue]  # images run stage by stage
        x = x.reshape(*x.shape[:2], first.channels, first.height, first.width)
        return x.permute(0, 1, 3, 4, 2).contiguous()

    def _support(self, support: Data) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the tasks."""
        return self._inputs(support.inputs[0]), support.targets[0].contiguous()

    def _rates(self, at: MetaInputs) -> Tensor:
        """The step sizes as the kernels read them: one a step with Adam's corrections, or [K, P] in their order."""
        (rates,) = at.meta
        steps, rates = self.engine.loop.steps, rates.detach()
        if rates.shape[1] == 1:
            return self._rule.schedule(rates[:, 0].expand(steps))
        return self._inside(rates.expand(steps, -1)).contiguous()

    def _directions(self, tasks: int) -> Tensor | None:
        """Room [K, T, P] for the direction of every step, where learned rates want a gradient."""
        if not self.engine.meta_wanted:
            return None
        layout = self.engine.outer.layout
        return torch.empty(self.engine.loop.steps, tasks, layout.size, dtype=layout.dtype, device=layout.device)

    def _adapt(
        self, at: MetaInputs, support: tuple[Tensor, Tensor], rates: Tensor, directions: Tensor | None, *, keep: bool
    ) -> Adapted:
        keep = keep and self.engine.adjoint.kernels == "exact"
        return self.kernels.adapt(self._theta(at), *support, rates=rates, keep=keep, directions=directions)

    def meta_step(self, at: MetaInputs, support: Data, query: Data, context: Context, *, keep: bool) -> MetaGradient:
        """Losses, outputs and, where `keep` says so, the meta-gradient and each task's share of it."""
        parts = [self._slice(at, support.take(s, 0), query.take(s, 0), keep=keep) for s in self.slices]
        tasks = parts[0] if len(parts) == 1 else TaskResults.joined(parts)
        if tasks.cotangents is None:
            return MetaGradient.of(tasks)
        start, loss = mean_over_tasks(tasks.cotangents.start, tasks.losses, tasks.finite)
        meta = tuple(x.sum(0) / finite_count(tasks.finite) for x in tasks.cotangents.meta)
        return MetaGradient(loss, Cotangents(start, meta=meta), tasks)

    def _slice(self, at: MetaInputs, support: Data, query: Data, *, keep: bool) -> TaskResults:
        loop, outer, adjoint = self.engine.loop, self.engine.outer, self.engine.adjoint.kernels
        data = self._support(support)
        rates, directions = self._rates(at), self._directions(data[0].shape[0]) if keep else None
        adapted = self._adapt(at, data, rates, directions, keep=keep)
        query = Data(self.engine.behind_support(support, query.inputs), query.targets)
        x = self._inputs(query.inputs[0])
        tasks, steps = x.shape[0], loop.steps
        exact = keep and adjoint == "exact"
        lam = x.new_empty(tasks, self.engine.outer.layout.size) if keep else None
        finite = x.new_empty(tasks, dtype=torch.uint8)
        last = None if exact and steps else finite  # the last launch finds the tasks that are not finite
        if self._known:
            y, rule = query.targets[0].contiguous(), _loss_rule(outer.loss)
            outputs, losses = self._query_pass(
                adapted, steps, x, y, rule, lam=lam, finite=last, reptile=keep and adjoint == "reptile"
            )
        else:
            outputs, losses = self._own_loss(adapted, x, query, lam=lam, finite=last)
        if lam is not None and exact and steps:
            self.kernels.adjoint(adapted, lam, *data, rates=rates, finite=finite, directions=directions)
        if lam is None:
            return TaskResults(losses, [outputs], finite.view(torch.bool), None)
        found = Cotangents(self._outside(lam), meta=self._of_rates(at, lam, directions))
        finite = finite.view(torch.bool)
        return TaskResults(losses, [outputs], finite, only_finite(found, finite) if found.meta else found)

    def _of_rates(self, at: MetaInputs, lam: Tensor, directions: Tensor | None) -> tuple[Tensor, ...]:
        """Each task's ∂/∂rates [T, K or 1, P or 1]; `directions` hold it per value, or u_k where no adjoint was run."""
        if directions is None:
            return ()
        (rates,) = at.meta
        exact = self.engine.adjoint.kernels == "exact"
        each = self._outside(directions if exact else directions * -lam).transpose(0, 1)
        each = each.sum(2, keepdim=True) if rates.shape[1] == 1 else each
        return (each.sum(1, keepdim=True) if rates.shape[0] == 1 else each,)

    def _query_pass(
        self, adapted: Adapted, steps: int, x: Tensor, y: Tensor, rule: LossRule, *, lam: Tensor | None,
        finite: Tensor | None = None, reptile: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The kernels' `apply`: outputs of the queries [T, M, ...], and losses [T]."""
        outputs, losses = self.kernels.apply(
            adapted, steps, x, y, rule, lam=lam, finite=finite, reptile=reptile, **self._statistics
        )
        _, *shape = self.engine.outer.plan.output_shapes[0]
        return outputs.view(*x.shape[:2], *shape)[:, self._skip :], losses

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
        reptile = lam is not None and self.engine.adjoint.kernels == "reptile"
        if lam is not None or finite is not None:
            self.kernels.apply(
                adapted, steps, x, d, LossRule("given"), lam=lam, finite=finite, reptile=reptile, **self._statistics
            )
        return outputs, losses

    def adapt(self, at: MetaInputs, support: Data, context: Context, *, keep: bool) -> Adaptation:
        """φ_K [T, P], and the function λ_K → cotangents at φ_0, which may be called again."""
        steps, rates = self.engine.loop.steps, self._rates(at)
        data = [self._support(support.take(s, 0)) for s in self.slices]
        directions = [self._directions(part[0].shape[0]) if keep else None for part in data]
        runs = [self._adapt(at, part, rates, of, keep=keep) for part, of in zip(data, directions, strict=True)]

        def pull(lam: Tensor, _: State) -> Cotangents:
            parts = zip(runs, data, directions, self.slices, strict=True)
            return over_tasks(torch.cat, [pull_slice(run, part, of, lam[s]) for run, part, of, s in parts])

        def pull_slice(run: Adapted, part: tuple[Tensor, Tensor], of: Tensor | None, lam: Tensor) -> Cotangents:
            lam = self._inside(lam)
            if self.engine.adjoint.kernels == "exact" and steps:
                # both are written: the λ of the caller, and the directions, which the next call reads again
                lam = lam.clone(memory_format=torch.contiguous_format) if self._order is None else lam
                of = None if of is None else of.clone()
                self.kernels.adjoint(run, lam, *part, rates=rates, directions=of)
            return Cotangents(self._outside(lam), meta=self._of_rates(at, lam, of))

        finals = [run.final(s.stop - s.start, steps) for run, s in zip(runs, self.slices, strict=True)]
        return Adaptation(self._outside(torch.cat(finals)), (), pull)

    def outputs(
        self, phi: Tensor, support: Data, inputs: tuple[Tensor, ...], context: Context
    ) -> tuple[list[Tensor], Pullback]:
        """Outputs [T, M, ...] at φ [T, P], and the function of their cotangents to φ's."""
        x, phi = self._inputs(self.engine.behind_support(support, inputs)[0]), self._inside(phi).contiguous()
        at = Adapted(phi, phi, 1, phi.new_zeros(phi.shape[0]), [])
        outputs, _ = self._query_pass(at, 1, x, x, LossRule("none"), lam=None)

        def pullback(d_outputs: Sequence[Tensor | None]) -> Cotangents:
            (d,) = d_outputs
            lam = torch.zeros_like(at.phis)
            if d is not None:
                self.kernels.apply(at, 1, x, d.contiguous(), LossRule("given"), lam=lam, **self._statistics)
            return Cotangents(self._outside(lam))

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


def _inner_rule(rule: Rule, steps: int, batch: int | None) -> InnerRule:
    known = rule.in_kernels()
    assert not isinstance(known, str), "a rule that the kernels do not have is not taken"
    return InnerRule(known.name, known.hyper, steps, batch)


def _loss_rule(loss: Loss | None) -> LossRule:
    if isinstance(loss, CrossEntropy):
        return LossRule("cross_entropy", loss.label_smoothing, loss.ignore_index)
    return LossRule("mse")
