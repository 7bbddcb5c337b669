"""The engine's functions on Triton kernels: same interface as the torch backend, whole loops in single launches."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from math import prod
from typing import NamedTuple

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
from fastmeta.internals import copy_all, writes_to
from fastmeta.kernels.description import Adapted, LossRule  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.kernels.launch import also, counters_of, on_card  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.kernels.layerwise import Layerwise  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.kernels.mlp import MLP, mean_over_tasks  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.kernels.tiles import DEEPEST, MOST  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.ops.cross_entropy import CrossEntropy
from fastmeta.ops.mse import MSE
from fastmeta.optim.base import State

from .base import Adapted as Adaptation
from .base import Planned, Pullback
from .convnet import Graph
from .described import chain_of, inner_rule, loss_rule, network_of, order_of
from .perceptron import Layer
from .taped import Memory, Tapes


def fits_loop(engine: Engine, layers: Sequence[Layer]) -> bool:
    """Whether `mlp_loop` takes the perceptron; else it runs layer by layer."""
    samples = [plan.output_shapes[0][0] for plan in (engine.loop.objective.plan, engine.outer.plan)]
    widths = [size for layer in layers for size in (layer.inputs, layer.outputs)]
    return max(*samples, *widths) <= MOST and len(layers) <= DEEPEST


class _Part(NamedTuple):
    """Data of a slice of the tasks, as the kernels read them but for their place in memory."""

    x: Tensor
    y: Tensor
    query_x: Tensor
    query_y: Tensor


class _Read(NamedTuple):
    """All that a meta-step's launches read: pieces of a row θ in the kernels' order, rates, data of every slice."""

    theta: list[Tensor]
    rates: Tensor
    parts: list[_Part]


class _Swept(NamedTuple):
    """What the launches leave: of each task, in the kernels' order, and the means over finite tasks."""

    losses: Tensor
    outputs: Tensor
    finite: Tensor  # uint8
    lam: Tensor | None = None  # λ_0 [T, P]
    directions: Tensor | None = None  # [K, T, P], where rates are learned
    loss: Tensor | None = None
    gradient: Tensor | None = None  # [P]

    def copied(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Losses, outputs, finite tasks and mean loss in new memory."""
        given = [self.losses, self.outputs] if self.loss is None else [self.losses, self.outputs, self.loss]
        made = [torch.empty_like(x) for x in given]
        copy_all(made, given)
        return made[0], made[1], self.finite.clone(), made[2] if self.loss is not None else None


def _joined(found: Sequence[_Swept]) -> _Swept:
    """Of slices of the tasks, those of all."""

    def one(parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
        tensors = [x for x in parts if x is not None]
        if not tensors:
            return None
        shape = list(tensors[0].shape)
        shape[dim] = sum(x.shape[dim] for x in tensors)
        whole = tensors[0].new_empty(shape)
        also(torch.cat, tensors, dim, out=whole)
        return whole

    columns = zip(*found, strict=True)
    names = _Swept._fields
    return _Swept(*(one(parts, 1 if name == "directions" else 0) for name, parts in zip(names, columns, strict=True)))  # pyright: ignore[reportArgumentType]  # what every slice has is there


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
            inner_rule(loop.rule, loop.steps, loop.batch), loss_rule(loop.objective.loss), precision,
        )  # fmt: skip
        self._corrections = rules[0].corrections(layout.device)  # the cache may drop it, a CUDA graph holds its place
        self._rule = rules[0]
        layers = [stage for stage in graph.stages if isinstance(stage, Layer)]
        self._images = len(layers) < len(graph.stages)
        if not self._images and fits_loop(engine, layers):
            self.runs_by, self.kernels = "Triton kernels of mlp_loop", MLP(chain_of(layers, layout), *rules)
        else:
            self.runs_by = f"Triton kernels of {'conv_block and linear' if self._images else 'linear'}"
            self.kernels = Layerwise(network_of(graph, layout), *rules, save=not loop.recompute)
        self._skip = engine.outer.skip  # support samples in front of the queries, whose statistics batch norm takes
        self._statistics = {"statistics_rows": self._skip} if self._skip else {}
        order = order_of(graph, layout) if self._images else None
        self._order = order
        self._inverse = None if order is None else order.argsort()
        self._schedule: tuple[Tensor, int, Tensor] | None = None  # of a step size, at a version of its memory
        self._tapes: Tapes[_Read, _Swept] = Tapes(layout.device, self._memory, self._launches)
        self._known = isinstance(engine.outer.loss, MSE | CrossEntropy)
        self._pads = [
            torch.zeros(pad, dtype=layout.dtype, device=layout.device) if pad else None for pad in layout.padding
        ]

    def keys(self) -> Tensor:
        """No kernel draws random numbers, so all tasks' keys are zero."""
        return self._zero_keys

    def apart(self, own: dict[Hashable, Tensor]) -> AbstractContextManager[None]:
        """As `cuda_graph.Recorded` asks: the launches' counters."""
        return counters_of(own)

    def _theta(self, at: MetaInputs) -> list[Tensor]:
        """The pieces of φ_0 as a row [P] of the kernels'."""
        if isinstance(at.start, Tensor):
            return [self._inside(at.start.detach()).contiguous()]
        pieces: list[Tensor] = []
        for p, pad in zip(at.start, self._pads, strict=True):
            pieces += [p.detach().reshape(-1)] if pad is None else [p.detach().reshape(-1), pad]
        return pieces if self._order is None else [torch.cat(pieces)[self._order]]

    def _inside(self, rows: Tensor) -> Tensor:
        """Rows [..., P] of parameters in the kernels' order."""
        return rows if self._order is None else rows.index_select(-1, self._order)

    def _outside(self, rows: Tensor) -> Tensor:
        """Rows [..., P] in the layout's order again."""
        return rows if self._inverse is None else rows.index_select(-1, self._inverse)

    def _inputs(self, x: Tensor) -> Tensor:
        """Inputs [T, N, ...] as the kernels read them, but for their place: [T, N, D], or images [T, N, H, W, C]."""
        if not self._images:
            return x.reshape(*x.shape[:2], prod(x.shape[2:]))
        first = self.kernels.network.stages[0]  # pyright: ignore[reportAttributeAccessIssue]  # images run stage by stage
        x = x.reshape(*x.shape[:2], first.channels, first.height, first.width)
        return x.permute(0, 1, 3, 4, 2)

    def _support(self, support: Data) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the tasks."""
        return self._inputs(support.inputs[0]).contiguous(), support.targets[0].contiguous()

    def _rates(self, at: MetaInputs) -> Tensor:
        """The step sizes as the kernels read them: one a step with Adam's corrections, or [K, P] in their order."""
        (rates,) = at.meta
        known = self._schedule
        # a fixed step size is the same tensor in every call
        if known is not None and known[0] is rates and known[1] == writes_to(rates):
            return known[2]
        steps, values = self.engine.loop.steps, rates.detach()
        if rates.shape[1] > 1:
            return self._inside(values.expand(steps, -1)).contiguous()
        schedule = self._rule.schedule(values[:, 0].expand(steps))
        if not (rates.requires_grad or rates.is_inference()):
            self._schedule = rates, writes_to(rates), schedule
        return schedule

    def _directions(self, tasks: int) -> Tensor | None:
        """Room [K, T, P] for the direction of every step, where learned rates want a gradient."""
        if not self.engine.meta_wanted:
            return None
        layout = self.engine.outer.layout
        return torch.empty(self.engine.loop.steps, tasks, layout.size, dtype=layout.dtype, device=layout.device)

    def _adapt(
        self, theta: list[Tensor], support: tuple[Tensor, Tensor], rates: Tensor, directions: Tensor | None, *,
        keep: bool,
    ) -> Adapted:  # fmt: skip
        keep = keep and self.engine.adjoint.kernels == "exact"
        return self.kernels.adapt(theta, *support, rates=rates, keep=keep, directions=directions)

    def meta_step(
        self, at: MetaInputs, support: Data, query: Data, context: Context, *, keep: bool, shares: bool = True
    ) -> MetaGradient:
        """Losses, outputs and, where `keep` says so, the meta-gradient and each task's share of it."""
        rates, parts = self._rates(at), list(self._parts(support, query))
        with on_card(rates):
            if self._known and (self.graphs is None or self.graphs.why_not):
                start = [at.start] if isinstance(at.start, Tensor) else at.start
                finish = partial(self._meta_gradient, at, shares=shares, lasts=False)
                step = self._tapes.run([*start, rates, *chain.from_iterable(parts)], finish, keep=keep)
                if step is not None:
                    return step
            parts = [_Part(*(x.contiguous() for x in part)) for part in parts]
            return self._meta_gradient(
                at, self._sweep(_Read(self._theta(at), rates, parts), keep, query), shares=shares
            )

    def _parts(self, support: Data, query: Data) -> Iterator[_Part]:
        for s in self.slices:
            part, asked = (support, query) if len(self.slices) == 1 else (support.take(s, 0), query.take(s, 0))
            (x,) = self.engine.behind_support(part, asked.inputs)
            y = asked.targets[0] if asked.targets else x
            yield _Part(self._inputs(part.inputs[0]), part.targets[0], self._inputs(x), y)

    def _memory(self, tensors: Sequence[Tensor]) -> Memory[_Read]:
        """Room for what `meta_step` hands to tapes: φ_0, rates, and four tensors for every slice."""
        layout, count = self.engine.outer.layout, 4 * len(self.slices)
        row = torch.zeros(layout.size, dtype=layout.dtype, device=layout.device)
        others = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors[-count - 1 :]]
        start = [row] if tensors[0].shape == row.shape else list(layout.split(row))
        rates, *data = others
        parts = [_Part(*data[at : at + 4]) for at in range(0, count, 4)]
        return Memory(_Read([row], rates, parts), [*start, *others])

    def _launches(self, read: _Read, keep: bool) -> _Swept:
        """All of a meta-step's, on a row θ in the layout's order."""
        (row,) = read.theta
        if self._order is not None:
            inside = torch.empty_like(row)
            also(torch.index_select, row, 0, self._order, out=inside)
            row = inside
        return self._sweep(read._replace(theta=[row]), keep, None)

    def _sweep(self, read: _Read, keep: bool, query: Data | None) -> _Swept:
        """All launches. `query` is what a user's own outer loss reads."""
        slices = zip(read.parts, self.slices, strict=True)
        found = [
            self._slice(read, part, keep=keep, query=None if query is None else query.take(s, 0)) for part, s in slices
        ]
        swept = found[0] if len(found) == 1 else _joined(found)
        if swept.lam is None:
            return swept
        gradient, loss = mean_over_tasks(swept.lam, swept.losses, swept.finite)
        return swept._replace(gradient=gradient, loss=loss)

    def _slice(self, read: _Read, part: _Part, *, keep: bool, query: Data | None) -> _Swept:
        loop, outer, adjoint = self.engine.loop, self.engine.outer, self.engine.adjoint.kernels
        x, y, query_x, query_y = part
        tasks, steps = x.shape[0], loop.steps
        directions = self._directions(tasks) if keep else None
        adapted = self._adapt(read.theta, (x, y), read.rates, directions, keep=keep)
        exact = keep and adjoint == "exact"
        lam = x.new_empty(tasks, outer.layout.size) if keep else None
        finite = x.new_empty(tasks, dtype=torch.uint8)
        last = None if exact and steps else finite  # the last launch finds the tasks that are not finite
        if self._known:
            outputs, losses = self._query_pass(
                adapted, steps, query_x, query_y, loss_rule(outer.loss), lam=lam, finite=last,
                reptile=keep and adjoint == "reptile",
            )  # fmt: skip
        else:
            assert query is not None, "an outer loss of the user's reads the query set itself"
            outputs, losses = self._own_loss(adapted, query_x, query, lam=lam, finite=last)
        if lam is not None and exact and steps:
            self.kernels.adjoint(adapted, lam, x, y, rates=read.rates, finite=finite, directions=directions)
        return _Swept(losses, outputs, finite, lam, directions)

    def _meta_gradient(self, at: MetaInputs, swept: _Swept, *, shares: bool, lasts: bool = True) -> MetaGradient:
        """What the launches left, in the layout's order; copied, where their memory does not last."""
        lam, directions, gradient = swept.lam, swept.directions, swept.gradient
        losses, outputs, finite, loss = swept[:3] + swept[5:6] if lasts else swept.copied()
        finite = finite.view(torch.bool)
        if lam is None or gradient is None or loss is None:
            return MetaGradient.of(TaskResults(losses, [outputs], finite, None))
        meta = self._of_rates(at, lam, directions)
        tasks = None
        if shares or meta:
            start = self._outside(lam)
            tasks = Cotangents(start if lasts or start is not lam else lam.clone(), meta=meta)
            tasks = only_finite(tasks, finite) if meta else tasks
        means = () if tasks is None else tuple(x.sum(0) / finite_count(finite) for x in tasks.meta)
        start = self._outside(gradient)
        start = start if lasts or start is not gradient else gradient.clone()
        return MetaGradient(loss, Cotangents(start, meta=means), TaskResults(losses, [outputs], finite, tasks))

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
        theta = self._theta(at)
        runs = [self._adapt(theta, part, rates, of, keep=keep) for part, of in zip(data, directions, strict=True)]

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
        x = self._inputs(self.engine.behind_support(support, inputs)[0]).contiguous()
        phi = self._inside(phi).contiguous()
        at = Adapted(phi, phi, 1, phi.new_zeros(phi.shape[0]), [])
        outputs, _ = self._query_pass(at, 1, x, x, LossRule("none"), lam=None)

        def pullback(d_outputs: Sequence[Tensor | None]) -> Cotangents:
            (d,) = d_outputs
            lam = torch.zeros_like(at.phis)
            if d is not None:
                self.kernels.apply(at, 1, x, d.contiguous(), LossRule("given"), lam=lam, **self._statistics)
            return Cotangents(self._outside(lam))

        return [outputs], pullback
