"""Kernels' results on the user's meta-batch held against float64 on two of its tasks, torch ops' errors beside them.

Kernels may be twice as far from float64 as torch ops in the same precision are, and a little more. Where rounding
pushes a pre-activation across a kink or swaps the winner of a pool, right results are far apart by chance: values are
then moved a little and compared again, and of each result the kernels' least error and torch ops' largest count. What
is wrong is wrong every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastmeta.program.layout import Layout
from fastmeta.program.messages import first_line
from fastmeta.program.program import Program, leaves_of

from .backends.base import Backend
from .backends.torch_ops import TorchBackend
from .backends.verdicts import Compared
from .batch import TaskBatch, finite_tasks
from .meta_step import Engine, MetaInputs
from .objective import Context, Data, Objective
from .options import Kind, Options
from .trial import apart, in_float64, wide

CallName = Literal["meta-step", "adaptation", "query pass"]

ALLOWED = {"float32": 1e-5, "tf32": 1e-2, "bfloat16": 1e-1}
"""Beside twice torch ops' error, relative: operands of 11 and 8 bits err so much in a few steps, as in the tests on
GPUs."""

_BITS = {"tf32": 10, "bfloat16": 7}
"""Of an operand's mantissa that stay. Torch ops have no bfloat16, and tf32 only where products are large enough."""

_MEAN = 1e-5
"""Of a mean over tasks in float32, relative to the mean of the sizes."""

_TRIALS = 4
_BY_PARAMETER = ("meta-gradient", "update")


class KernelsFail(Exception):
    """Kernels raise or compute something else; the message says what."""


class Undecided(Exception):
    """Nothing can be said here and now; the message says why."""


class Found(NamedTuple):
    """What a backend gives.

    Attributes:
        rows: [T, ...] each.
        finite: [T].
        means: over the finite tasks, of the rows of that name.
    """

    rows: dict[str, Tensor]
    finite: Tensor
    means: dict[str, Tensor]


@dataclass(frozen=True)
class Asked:
    """What a session asks of its backend on one meta-batch."""

    call: CallName
    engine: Engine
    at: MetaInputs
    support: Data
    query: Data
    context: Context

    @classmethod
    def of(
        cls, engine: Engine, program: Program, options: Options, batch: TaskBatch, kind: Kind, *, with_loss: bool
    ) -> Asked:
        """On the user's batch, at the module's own parameters and the rule's step sizes."""
        layout, named = program.layout, dict(program.module.named_parameters())
        start: tuple[Tensor, ...] | Tensor = tuple(p.detach() for p in layout.take(named))
        if kind.start != "θ":
            start = layout.row(start)
        meta = tuple(x.detach() for x in options.inner_optimizer.meta(layout, kind.first + kind.steps))
        keys = torch.zeros(batch.tasks, dtype=torch.int64, device=layout.device)
        return cls(
            call_of(batch, with_loss=with_loss),
            engine,
            MetaInputs(start, meta=meta),
            _detached(Data(leaves_of(batch.support_x), leaves_of(batch.support_y))),
            _detached(Data(leaves_of(batch.query_x), leaves_of(batch.query_y))),
            Context((), tuple(x.detach() for x in program.constants()), keys),
        )

    @property
    def tasks(self) -> int:
        """T."""
        return self.context.keys.shape[0]

    @property
    def layout(self) -> Layout:
        """Of a row of fast weights."""
        return self.engine.outer.layout

    def of_tasks(self, index: Tensor) -> Asked:
        """On some of the tasks."""
        return replace(
            self, support=self.support.take(index, 0), query=self.query.take(index, 0),
            context=self.context._replace(keys=self.context.keys[index]),
        )  # fmt: skip

    def in_float64(self) -> Asked:
        """The same in float64."""
        at = self.at
        start = wide(at.start) if isinstance(at.start, Tensor) else tuple(map(wide, at.start))
        return replace(
            self, engine=_in_float64(self.engine), at=at._replace(start=start, meta=tuple(map(wide, at.meta))),
            support=_each(wide, self.support), query=_each(wide, self.query),
            context=self.context._replace(constants=tuple(map(wide, self.context.constants))),
        )  # fmt: skip

    def moved(self) -> Asked:
        """At slightly other parameters and inputs."""
        return self._with(_beside)

    def rounded(self, precision: str) -> Asked:
        """At parameters and inputs as a product in this precision sees them."""
        if precision not in _BITS:
            return self
        return self._with(lambda x: _rounded(x, _BITS[precision]))

    def _with(self, function: Callable[[Tensor], Tensor]) -> Asked:
        """At other parameters and inputs."""
        at = self.at
        start = function(at.start) if isinstance(at.start, Tensor) else tuple(map(function, at.start))
        support, query = (d._replace(inputs=tuple(map(function, d.inputs))) for d in (self.support, self.query))
        return replace(self, at=at._replace(start=start), support=support, query=query)

    def on_torch_ops(self) -> Found:
        """By the engine's own sweeps."""
        return self.run(TorchBackend(self.engine, self.tasks, chunk=None, compiled=False))

    def on_kernels(self, kernels: Backend) -> Found:
        """By kernels that were made for the whole batch.

        Raises:
            KernelsFail: they raise.
            Undecided: they do not fit into memory.
        """
        with watched():
            found = self.run(kernels)
            wait(self.layout.device)
        return found

    def run(self, backend: Backend) -> Found:
        """All that the call gives."""
        if self.call == "meta-step":
            step = backend.meta_step(self.at, self.support, self.query, self.context, keep=True)
            tasks, mean = step.tasks, step.gradient
            assert tasks.cotangents is not None, "a meta-step with its gradient"
            assert mean is not None, "and the mean of it"
            found, rates = tasks.cotangents, _numbered(tasks.cotangents.meta)
            rows = {"losses": tasks.losses, "outputs": tasks.outputs[0], "meta-gradient": found.start, **rates}
            return Found(
                rows, tasks.finite, {"losses": step.loss, "meta-gradient": mean.start, **_numbered(mean.meta)}
            )  # fmt: skip
        theta = self.engine.row(self.at)
        if self.call == "adaptation":
            adapted = backend.adapt(self.at, self.support, self.context, keep=True)
            sigma = tuple(map(torch.zeros_like, adapted.state))
            found = adapted.pull(self._lam.expand_as(adapted.phi).contiguous(), sigma)
            rows = {"update": adapted.phi - theta, "meta-gradient": found.start, **_numbered(found.meta)}
            return Found(rows, finite_tasks(adapted.phi, found.start), {})
        phi = theta.expand(self.tasks, -1).contiguous()
        (y,), pull = backend.outputs(phi, self.support, self.query.inputs, self.context)
        start = pull([_spread(y[0]).expand_as(y)]).start
        return Found({"outputs": y, "meta-gradient": start}, finite_tasks(y, start), {})

    @property
    def _lam(self) -> Tensor:
        """A cotangent of adapted weights, [P]: zero between parameters, as all rows are."""
        at = self.at.start
        params = self.layout.views(at.unsqueeze(0)) if isinstance(at, Tensor) else [p.unsqueeze(0) for p in at]
        return self.layout.row([_spread(p[0]) for p in params])


@contextmanager
def watched() -> Iterator[None]:
    """Whatever kernels raise inside, as `KernelsFail`; memory that does not suffice as `Undecided`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Undecided("Triton kernels do not fit into the device's memory") from error
    except Exception as error:
        raise KernelsFail(f"they raise {first_line(error)}") from error


def prove(asked: Asked, kernels: Backend, precision: str) -> tuple[tuple[Compared, ...], str]:
    """How far the kernels are from float64, and on what, in words.

    Raises:
        KernelsFail: they raise.
        Undecided: no two tasks of the batch can tell.
    """
    index = _two_tasks(asked)
    tally: dict[str, Compared] = {}
    trials = 0
    while not trials or (trials < _TRIALS and any(c.wrong for c in tally.values())):
        asked, trials = asked.moved() if trials else asked, trials + 1
        try:
            some = asked.of_tasks(index)
            truth, plain = some.in_float64().on_torch_ops(), some.rounded(precision).on_torch_ops()
        except torch.OutOfMemoryError:
            raise Undecided("two tasks in float64 do not fit into the device's memory") from None
        except Exception as error:  # a constant of float32 in a loss, a device without float64
            raise Undecided(f"float64 cannot be had: {first_line(error)}") from error
        kept = (truth.finite & plain.finite).nonzero().flatten()
        if not len(kept):
            raise Undecided("no task of the batch stays finite")
        fast = asked.on_kernels(kernels)
        errors = [
            _distances(rows, truth, kept, asked.layout)
            for rows in ({name: x[index] for name, x in fast.rows.items()}, plain.rows)
        ]
        for name in errors[0]:
            here = Compared(name, errors[0][name], errors[1][name], 0.0)
            tally[name] = _better(tally.get(name), here, ALLOWED[precision])
        for name, mean in fast.means.items():
            error = _mean_error(mean, fast.rows[name], fast.finite)
            tally[f"mean {name}"] = Compared(f"mean {name}", error, None, _MEAN)
    tasks = " and ".join(map(str, index.tolist()))
    setting = f"task{'s' * (len(index) > 1)} {tasks}, {trials} trial{'s' * (trials > 1)}"
    return tuple(tally.values()), setting


def call_of(batch: TaskBatch, *, with_loss: bool) -> CallName:
    """What a session on such a batch asks for."""
    if with_loss:
        return "meta-step"
    return "adaptation" if batch.query_x is None else "query pass"


def wait(device: torch.device) -> None:
    """Until a GPU is done, so that its errors are raised."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _two_tasks(asked: Asked) -> Tensor:
    """The first and the last whose data are finite: far apart in every buffer."""
    finite = finite_tasks(*(x for data in (asked.support, asked.query) for x in (*data.inputs, *data.targets)))
    index = finite.nonzero().flatten()
    if not len(index):
        raise Undecided("no task of the batch has finite data")
    return index if len(index) == 1 else torch.stack([index[0], index[-1]])


def _better(known: Compared | None, here: Compared, atol: float) -> Compared:
    """The kernels' least error and torch ops' largest of several trials."""
    least, largest = here.kernels, here.torch or 0.0
    if known is not None:
        lost = math.isnan(known.kernels) or math.isnan(least)
        least = math.nan if lost else min(known.kernels, least)
        largest = max(known.torch or 0.0, largest)
    return Compared(here.name, least, largest, 2 * largest + atol)


def _distances(rows: dict[str, Tensor], truth: Found, kept: Tensor, layout: Layout) -> dict[str, float]:
    """‖rows − truth‖ / ‖truth‖ over the tasks `kept`, whole and, of gradients, by parameter."""
    found: dict[str, float] = {}
    for name, every in truth.rows.items():
        want, got = every[kept].double(), rows[name][kept].double()
        scale = float(want.norm()) or 1.0
        found[name] = float((got - want).norm()) / scale
        if name in _BY_PARAMETER:
            for parameter, a, b in zip(layout.names, layout.views(got), layout.views(want), strict=True):
                found[f"{name} of {parameter!r}"] = float((a - b).norm()) / scale
    return found


def _mean_error(mean: Tensor, rows: Tensor, finite: Tensor) -> float:
    """Of a mean over the finite tasks, as their own rows have it."""
    rows = rows[finite].double()
    if not len(rows):
        return 0.0 if not mean.any() else float("inf")
    scale = float(rows.abs().mean(0).norm()) or 1.0
    return float((mean.double() - rows.mean(0)).norm()) / scale


def _in_float64(engine: Engine) -> Engine:
    def of(objective: Objective) -> Objective:
        return replace(objective, layout=in_float64(objective.layout), shared=in_float64(objective.shared))

    return replace(engine, loop=replace(engine.loop, objective=of(engine.loop.objective)), outer=of(engine.outer))


def _each(function: Callable[[Tensor], Tensor], data: Data) -> Data:
    return Data(tuple(map(function, data.inputs)), tuple(map(function, data.targets)))


def _detached(data: Data) -> Data:
    return _each(torch.Tensor.detach, data)


def _beside(x: Tensor) -> Tensor:
    return apart(torch.nan_to_num(x, 0.0, 0.0, 0.0)) if x.is_floating_point() else x


def _rounded(x: Tensor, bits: int) -> Tensor:
    """float32 to so many bits of mantissa, the nearest."""
    if x.dtype != torch.float32:
        return x
    shift = 23 - bits
    return (x.view(torch.int32) + (1 << (shift - 1)) & -(1 << shift)).view(torch.float32)


def _numbered(rates: Sequence[Tensor]) -> dict[str, Tensor]:
    """By name; rules of the kernels learn one tensor at most."""
    assert len(rates) <= 1, "SGD and Adam learn their rates"
    return dict(zip(("gradient of rates",), rates, strict=False))


def _spread(x: Tensor) -> Tensor:
    """Numbers like random ones, of the shape of `x`."""
    return torch.arange(1, x.numel() + 1, dtype=x.dtype, device=x.device).mul(1.7).sin().view(x.shape)
