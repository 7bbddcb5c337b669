"""One trial of a plan: some tasks, what plain autograd makes of them, and how far a plan's sweeps are from that."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastmeta.internals import pytree, reparametrized
from fastmeta.ops.dropout import task_keys
from fastmeta.program.layout import Layout
from fastmeta.program.program import Program, leaves_of

from .adjoint import Cotangents
from .backends.one_by_one import OneByOne
from .batch import TaskBatch, Tree
from .draws import SameDraws, stepping
from .meta_step import Engine, MetaInputs
from .objective import Context, Data
from .options import Kind, Loss, Options
from .planning import make_engine

Quantities = dict[str, list[Tensor]]  # each task's own

_TOLERANCE = 1e-7
"""Relative, in float64: a hundred million roundings; a dropped term or a wrong sign is far more than that."""

_FLOOR = 1e-3
"""Norms below it count as it: what is zero but for rounding has no relative error."""

_STEP = 0.01
"""Length of the inner step beside that of the parameters: its Hessian term is then far above rounding, whatever the
loss's scale, and a network hardly leaves its place."""


class Difference(NamedTuple):
    """How far a quantity is from plain autograd's, relative; `where` it is farthest."""

    name: str
    error: float
    where: str


class Trial:
    """Tasks of one dtype, with parameters, buffers and data of that.

    Args:
        program: the user's.
        options: of the proof.
        batch: at most two tasks.
        wanted: of each tree of the batch, which tensors get a gradient.
        steps: inner steps.
        with_loss: whether the query set has a loss; else its outputs are looked at, or adaptation where it is empty.
        double: float64; else the module's own dtypes.
        whole: on all samples, so that the plan itself takes them.
        left_out: without dropout.
        random: whether the module draws random numbers.
        samples: the batch before samples were left out, for words.
    """

    def __init__(
        self, program: Program, options: Options, batch: TaskBatch, wanted: tuple[tuple[bool, ...], ...], steps: int,
        with_loss: bool, *, double: bool, whole: bool, left_out: bool, random: bool, samples: TaskBatch,
    ) -> None:  # fmt: skip
        self.double, self.whole, self.left_out, self.steps = double, whole, left_out, steps
        self._random, self._with_loss, self._samples = random, with_loss, samples
        self.options = options
        self.program = copy.copy(program)
        if double:
            self.program.layout, self.program.shared = in_float64(program.layout), in_float64(program.shared)
        self.layout, self.shared_layout = self.program.layout, self.program.shared
        cast = wide if double else torch.clone
        module = program.module
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.named = {n: cast(x.detach()).requires_grad_(x.requires_grad) for n, x in own.items()}
        trees = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
        self.batch = TaskBatch(*(_ready(tree, flags, cast) for tree, flags in zip(trees, wanted, strict=True)))
        self.support = Data(leaves_of(self.batch.support_x), leaves_of(self.batch.support_y))
        self.query = Data(leaves_of(self.batch.query_x), leaves_of(self.batch.query_y))
        self._keys = task_keys(1, batch.tasks, program.layout.device)
        self._rate = _STEP
        self._truth: Quantities = {}
        self._lost: set[int] = set()  # tasks that meta-steps leave out, as their support loss is not finite

    @property
    def tolerance(self) -> float:
        """Largest relative difference that rounding may make."""
        if self.double:
            return _TOLERANCE
        return max((torch.finfo(x.dtype).eps for x in self.named.values() if x.is_floating_point()), default=0.0) ** 0.5

    def setting(self) -> str:
        """What was compared on, in words."""
        dtype = "float64" if self.double else str(self.layout.dtype).removeprefix("torch.")
        tasks = self.batch.tasks
        parts = [f"{dtype}, {tasks} task{'s' * (tasks > 1)}, {self.steps} inner step{'s' * (self.steps != 1)}"]
        if not self.whole:
            sets = [(self.batch.support_samples, self._samples.support_samples, "support")]
            if self.batch.query_x is not None:
                sets.append((self.batch.query_samples, self._samples.query_samples, "query"))
            parts.append(" and ".join(f"{some} of {every} {name}" for some, every, name in sets) + " samples")
        if self._lost:
            parts.append(f"{len(self._lost)} of them without a finite support loss and left out")
        if self.left_out:
            parts.append("without dropout")
        return ", ".join(parts)

    # ----------------------------------------------------------------------------------------------------------------

    @property
    def _theta(self) -> tuple[Tensor, ...]:
        return tuple(self.layout.take(self.named))

    def _inputs(self, rate: float) -> MetaInputs:
        device, dtype = self.layout.device, self.layout.dtype
        meta = (torch.full((1, 1), rate, dtype=dtype, device=device),)
        return MetaInputs(self._theta, tuple(self.shared_layout.take(self.named)), meta)

    def _context(self) -> Context:
        shared = tuple(self.shared_layout.take(self.named))
        return Context(shared, tuple(self.named[n].detach() for n in self.program.constant_names), self._keys)

    def _in_module(self) -> AbstractContextManager[None]:
        """The user's module with the trial's parameters and buffers in it."""
        return reparametrized(self.program.module, self.named, tie_weights=True)

    def planned(self) -> Engine:
        """The program planned for the trial's own samples and dtype."""
        with self._in_module():
            return make_engine(self.program, self.options, self.batch, _kind(self.steps), with_loss=self._with_loss)

    # Plain autograd, a task at a time. ------------------------------------------------------------------------------

    def forward(self) -> None:
        """The module's outputs alone, as plain PyTorch computes them."""
        x = self.query.inputs or self.support.inputs
        tree = self.batch.support_x if self.batch.query_x is None else self.batch.query_x
        batch = replace(self.batch, query_x=tree, query_y=None)
        with self._in_module(), torch.no_grad():
            loop = OneByOne(self.program.module, self.program, self.options, batch, _kind(0))
            phi = self.layout.row(self._theta).unsqueeze(0)
            ys, _ = loop.outputs(phi, self.support.take(slice(0, 1), 0), tuple(y[:1] for y in x), self._context())
        if ys and ys[0].is_cuda:
            torch.cuda.synchronize(ys[0].device)

    def run_truth(self) -> None:
        """Plain autograd's results, and the length of the inner step.

        Raises:
            Exception: whatever the user's module, losses or PyTorch raise.
        """
        each: list[dict[str, Tensor]] = []
        with self._in_module():
            if self._adapts:
                # an inner step of size one shows the gradient
                gradients = [self._inner_gradient(t) for t in range(self.batch.tasks)]
                self._rate = self._length(gradients)
                each = [{"inner gradient": g} for g in gradients]
            else:
                each = [{} for _ in range(self.batch.tasks)]
            for t, found in enumerate(each):
                found.update(self._one_task(t))
        self._truth = {name: [found[name] for found in each] for name in each[0]}

    @property
    def _adapts(self) -> bool:
        return self.steps > 0 and (self._with_loss or self.batch.query_x is None)

    def _loop(
        self, t: int, steps: int, *, by_step: bool = True, losses: list[Tensor] | None = None
    ) -> tuple[OneByOne, AbstractContextManager[object]]:
        """The plain loop, and the random numbers of task `t` for it."""
        options = self.options
        mode: AbstractContextManager[object] = nullcontext()
        if self._random:
            mode = draws = SameDraws(self._keys[t : t + 1], by_step=by_step, without=self.left_out)
            options = replace(options, inner_loss=stepping(options.inner_loss, draws))
        if losses is not None:
            options = replace(options, inner_loss=_noted(options.inner_loss, losses))
        return OneByOne(self.program.module, self.program, options, self.batch, _kind(steps)), mode

    def _of(self, t: int) -> tuple[Data, Data, Context]:
        one = slice(t, t + 1)
        return self.support.take(one, 0), self.query.take(one, 0), self._context().take(one)

    def _inner_gradient(self, t: int) -> Tensor:
        losses: list[Tensor] = []
        loop, draws = self._loop(t, 1, losses=losses)
        support, _, context = self._of(t)
        with draws, torch.no_grad():
            phi = loop.adapt(self._inputs(1.0), support, context, keep=False).phi[0]
        if not all(bool(torch.isfinite(loss)) for loss in losses):
            self._lost.add(t)
        return self.layout.row(self._theta).detach() - phi

    def _length(self, gradients: Sequence[Tensor]) -> float:
        theta = float(torch.stack([x.detach().abs().square().sum() for x in self._theta]).sum().sqrt())
        g = max(float(x.abs().square().sum().sqrt()) for x in gradients)
        rate = _STEP * theta / g if g > 0 and math.isfinite(g) else 0.0
        return min(rate, 1.0) if 0 < rate < math.inf else _STEP

    def _one_task(self, t: int) -> dict[str, Tensor]:
        support, query, context = self._of(t)
        at, found = self._inputs(self._rate), {}
        loop, draws = self._loop(t, self.steps, by_step=self._with_loss or self.batch.query_x is None)
        theta = self._theta
        with draws:
            if self._with_loss:
                tasks = loop.meta_step(at, support, query, context, keep=True).tasks
                found["losses"], scalar, ys = tasks.losses[0].detach(), tasks.losses[0], tasks.outputs
            elif self.batch.query_x is None:
                phi = loop.adapt(at, support, context, keep=True).phi[0]
                scalar, ys = (phi * self._lam).sum(), []
            else:
                row = self.layout.row(theta)
                ys, _ = loop.outputs(row.unsqueeze(0), support, query.inputs, context)
                terms = [(y * _spread(y)).sum() for y in ys if y is not None and y.is_floating_point()]
                scalar = torch.stack(terms).sum() if terms else row.sum() * 0.0
            given = [y for y in ys if y is not None]
            found |= {_numbered("outputs", i, len(given)): y[0].detach() for i, y in enumerate(given)}
            found |= self._gradients(scalar, t)
        return found

    def _gradients(self, scalar: Tensor, t: int) -> dict[str, Tensor]:
        """Of a number with respect to all that gets a gradient; of a task that diverged there are none."""
        data = self._wanted_data()
        leaves = [*self._theta, *self.shared_layout.take(self.named), *data.values()]
        ds = [torch.zeros_like(x) for x in leaves]
        if scalar.requires_grad and bool(torch.isfinite(scalar)):
            ds = torch.autograd.grad(scalar, leaves, materialize_grads=True)
            ds = tuple(d.to_dense() if d.is_sparse else d for d in ds)  # of nn.Embedding(sparse=True)
        if not all(bool(torch.isfinite(d).all()) for d in (scalar, *ds)):
            ds = [torch.full_like(x, torch.nan) for x in leaves]
        theta, rest = ds[: len(self._theta)], ds[len(self._theta) :]
        shared, of_data = rest[: len(rest) - len(data)], rest[len(rest) - len(data) :]
        found = {"meta-gradient": self.layout.row(theta)}
        if shared:
            found["gradient of shared parameters"] = self.shared_layout.row(shared)
        return found | {name: d[t] for name, d in zip(data, of_data, strict=True)}

    @property
    def _lam(self) -> Tensor:
        """A cotangent of adapted weights, [P]: zero between parameters, as all rows are."""
        return self.layout.row([_spread(x) for x in self._theta])

    def _wanted_data(self) -> dict[str, Tensor]:
        parts = (("support", self.support), ("query", self.query))
        every = [(name, i, x) for name, data in parts for i, x in enumerate((*data.inputs, *data.targets))]
        return {f"gradient of {name} data {i}": x for name, i, x in every if x.requires_grad}

    # The plan's sweeps. ---------------------------------------------------------------------------------------------

    def compare(self, engine: Engine) -> list[Difference]:
        """How far the sweeps of `engine` are from plain autograd, in the order of computation."""
        with torch.no_grad():
            fast = self._swept(engine)
        return [self._difference(name, fast[name], true) for name, true in self._truth.items()]

    def _swept(self, engine: Engine) -> dict[str, Tensor]:
        """By quantity, [T, ...]."""
        context, at = self._context(), self._inputs(self._rate)
        found: dict[str, Tensor] = {}
        if self._adapts:
            one = self._inputs(1.0)
            first = replace(engine, loop=replace(engine.loop, steps=1))
            phi, _ = first.adapt(one, self.support, context, keep=False)
            found["inner gradient"] = first.row(one) - phi
        if self._with_loss:
            tasks = engine.meta_step(at, self.support, self.query, context, keep=True)
            assert tasks.cotangents is not None
            found["losses"], ys, pulled = tasks.losses, tasks.outputs[: _visible(engine)], tasks.cotangents
            finite = tasks.finite
        elif self.batch.query_x is None:
            phi, run = engine.adapt(at, self.support, context, keep=True)
            pulled = engine.pull(run, at, self.support, context, self._lam.expand_as(phi), ())
            ys, finite = [], torch.isfinite(phi + pulled.start).all(1)
        else:
            phi = engine.row(at).expand(self.batch.tasks, -1)
            ys = engine.outputs(phi, self.support, self.query.inputs, context)
            ds = [_spread(y[0]).expand_as(y) if y.is_floating_point() else None for y in ys]
            if any(d is not None for d in ds):
                pulled = engine.pullback(phi, self.support, self.query.inputs, context, ds)
            else:
                pulled = Cotangents(torch.zeros_like(phi))
            ys, finite = ys[: _visible(engine)], torch.isfinite(pulled.start).all(1)
        found |= {_numbered("outputs", i, len(ys)): y for i, y in enumerate(ys)}
        return found | self._pulled(pulled, finite)

    def _pulled(self, pulled: Cotangents, finite: Tensor) -> dict[str, Tensor]:
        def of(x: Tensor | None, like: Tensor) -> Tensor:
            x = torch.zeros_like(like) if x is None else x
            return torch.where(finite.view(-1, *(1,) * (x.dim() - 1)), x, torch.nan)

        found = {"meta-gradient": of(pulled.start, pulled.start)}
        if self.shared_layout.size:
            zeros = pulled.start.new_zeros(self.batch.tasks, self.shared_layout.size)
            found["gradient of shared parameters"] = of(pulled.shared, zeros)
        for name, x in self._wanted_data().items():
            _, _, side, _, place = name.split()
            ds = pulled.support if side == "support" else pulled.query
            found[name] = of(ds[int(place)] if int(place) < len(ds) else None, x)
        return found

    def _difference(self, name: str, fast: Tensor, true: Sequence[Tensor]) -> Difference:
        errors = [0.0 if t in self._lost else _relative(a, b) for t, (a, b) in enumerate(zip(fast, true, strict=True))]
        t = max(range(len(errors)), key=errors.__getitem__)
        where = ""
        if name in ("inner gradient", "meta-gradient") and errors[t] > self.tolerance:
            parts = zip(
                self.layout.names, *(self.layout.views(x.unsqueeze(0)) for x in (fast[t], true[t])), strict=True
            )
            far = {n: float(torch.nan_to_num(a - b, nan=math.inf).abs().square().sum()) for n, a, b in parts}
            where = f" (most in {max(far, key=far.__getitem__)!r})"
        return Difference(name, errors[t], where)


def _noted(loss: Loss, values: list[Tensor]) -> Loss:
    def run(outputs: Tree, targets: Tree) -> Tensor:
        value = loss(outputs, targets)
        values.append(value.detach())
        return value

    return run


def _kind(steps: int) -> Kind:
    return Kind(steps, 0, None, "θ", ())


def _visible(engine: Engine) -> int:
    """Outputs that the module returns; those behind them are for the loss alone."""
    return sum(engine.outer.plan.output_given)


def _numbered(name: str, i: int, count: int) -> str:
    return name if count == 1 else f"{name} {i}"


def _ready(tree: Tree, flags: Sequence[bool], cast: Callable[[Tensor], Tensor]) -> Tree:
    """Leaves of autograd's, in memory of their own."""
    rest = iter(flags)
    return pytree.tree_map(lambda x: None if x is None else cast(x.detach()).requires_grad_(next(rest)), tree)


def _relative(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖; NaN and infinity count as equal where both are."""
    if a.shape != b.shape:
        return math.inf
    if not (b.is_floating_point() or b.is_complex()):
        return 0.0 if torch.equal(a, b) else math.inf
    lost = ~torch.isfinite(a)
    if not torch.equal(lost, ~torch.isfinite(b)):
        return math.inf
    a, b = a.masked_fill(lost, 0.0), b.masked_fill(lost, 0.0)
    norm = float(torch.linalg.vector_norm(b))
    return float(torch.linalg.vector_norm(a - b)) / max(norm, _FLOOR)


def _spread(x: Tensor) -> Tensor:
    """Numbers like random ones, of the shape of `x`, that no generator is asked for."""
    return torch.arange(1, x.numel() + 1, dtype=x.dtype, device=x.device).mul(1.7).sin().view(x.shape)


def wide(x: Tensor) -> Tensor:
    """A copy in float64; of whole numbers as they are."""
    if x.is_complex():
        return x.to(torch.complex128, copy=True)
    return x.to(torch.float64, copy=True) if x.is_floating_point() else x.clone()


def in_float64(layout: Layout) -> Layout:
    """A layout of the same places with float64 in them."""
    return replace(layout, dtype=_wide_dtype(layout.dtype), dtypes=tuple(map(_wide_dtype, layout.dtypes)))


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def apart(x: Tensor) -> Tensor:
    """A leaf near `x`, off whatever kink `x` lies on."""
    if not x.is_floating_point():
        return x
    with torch.no_grad():
        near = x + 1e-3 * (x.abs() + x.abs().mean()) * _spread(x)
    return near.detach().requires_grad_(x.requires_grad)


def moved(batch: TaskBatch) -> TaskBatch:
    """Inputs a little beside those of `batch`; targets are as they are."""
    x, q = (None if tree is None else pytree.tree_map(lambda x: None if x is None else apart(x), tree)
            for tree in (batch.support_x, batch.query_x))  # fmt: skip
    return TaskBatch(x, batch.support_y, q, batch.query_y)
