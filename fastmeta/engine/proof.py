"""A new plan held against plain autograd on the user's own tasks, before its first number is returned.

The plan's sweeps run by torch ops on at most two tasks, in float64, and so does a plain loop over them
(`backends/one_by_one.py`). Held against each other are the inner gradient, task losses, outputs and each task's
meta-gradient after an inner step. What surrounds the sweeps is the same for every program and has its tests: the inner
rule, clipping, priors, more steps; an inner step here is one of plain gradient descent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmeta.internals import pytree
from fastmeta.ops.dropout import Dropout
from fastmeta.optim.sgd import SGD
from fastmeta.program.plan import Plan, seeded_in_python
from fastmeta.program.program import Program

from .adjoint import Displacement, Identity, Unrolled
from .autograd import no_autocast
from .batch import TaskBatch, Tree, finite_tasks
from .meta_step import Engine
from .objective import Objective
from .options import Kind, Options
from .planning import wanted
from .trial import Trial, apart, moved

_SECONDS = 0.4
"""What a proof may take, as far as that is known before: what would take longer is proved on fewer samples."""


class Verdict(NamedTuple):
    """What came of it.

    Attributes:
        line: what was compared and how far it was apart, for `explain()`.
        failure: why the plan must not be used; empty where it may.
        differs: whether that is because its numbers are wrong, which a user should report.
    """

    line: str
    failure: str = ""
    differs: bool = False


class _Way(NamedTuple):
    """A trial and the engine to be held against it, or none: one planned for the trial's own dtype and samples."""

    trial: Trial
    engine: Engine | None
    remark: str


@dataclass(frozen=True)
class _Given:
    """A plan that waits for its proof, and the tasks that it is held against plain autograd on."""

    engine: Engine
    program: Program
    options: Options  # those of the proof
    batch: TaskBatch
    wanted: tuple[tuple[bool, ...], ...]  # of each tree of the batch, which tensors get a gradient
    steps: int
    with_loss: bool


def prove(
    engine: Engine, program: Program, options: Options, batch: TaskBatch, kind: Kind, *, with_loss: bool
) -> Verdict:
    """Whether the plans of `engine` compute what PyTorch does on tasks of `batch`.

    Raises:
        Exception: what the plain loop itself raises, with a note.
    """
    flags = tuple(wanted(tree) for tree in _trees(batch))
    with undisturbed(program.layout.device):
        given = _Given(
            engine, program, _plain(options), _two_tasks(batch), flags, min(kind.steps, 2), with_loss
        )  # fmt: skip
        try:
            return _proved(given)
        except torch.OutOfMemoryError:
            return Verdict("none, two tasks in float64 do not fit into the device's memory")


def _proved(given: _Given) -> Verdict:
    drawn = seeded_in_python(given.engine.loop.objective.plan, given.engine.outer.plan)
    if drawn and _left_out(given):
        return Verdict(f"none, as {drawn[0]} draws other numbers for query samples behind support ones than for others")
    try:
        trial = _trial(given, double=True)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a float32 constant in the module or a loss, or a device without float64
        trial = _trial(given, double=False)
    found, failure = "", ""
    for way in _ways(given, trial):
        try:
            engine = way.engine or way.trial.planned()
            differences = way.trial.compare(_same_layout(engine, way.trial))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failure = failure or f"its sweeps raise {type(error).__name__}: {_first_line(error)}"
            continue
        wrong = [d for d in differences if d.error > way.trial.tolerance]
        if not wrong:
            of = ", ".join(f"{d.name} {d.error:.0e}" for d in differences)
            return Verdict(f"{of} off plain autograd in {way.trial.setting()}{way.remark}")
        first = wrong[0]  # what comes after it, comes of it
        found = f"{first.name}: {first.error:.1e}{first.where} off plain autograd in {way.trial.setting()}"
    return Verdict("", found or failure, bool(found))


def _ways(given: _Given, trial: Trial) -> Iterator[_Way]:
    """What may clear a plan, in turn. Its own sweeps come first, where they take the trial's samples."""
    if trial.whole:
        yield _Way(trial, given.engine, "")
    if trial.double or not trial.whole:
        # a constant that the module makes in the dtype of its parameters is one of float32 in their plan
        yield _Way(trial, None, ", planned in float64" if trial.whole else "")
    # at a kink two right sweeps may go to either side
    beside = _trial(given, double=trial.double, like=trial)
    yield _Way(beside, given.engine if trial.whole and not trial.double else None, ", at values moved off kinks")


def _trial(given: _Given, *, double: bool, like: Trial | None = None) -> Trial:
    """The tasks with plain autograd's results on them, on as many samples as there is time for.

    With `like`, on the same samples at slightly other values.
    """

    def made(batch: TaskBatch, *, whole: bool, steps: int) -> Trial:
        options = given.options
        if not whole and options.inner_batch_size is not None:
            options = replace(options, inner_batch_size=min(options.inner_batch_size, batch.support_samples))
        if not whole and options.query_batch_size is not None:
            options = replace(options, query_batch_size=min(options.query_batch_size, batch.query_samples))
        return Trial(
            given.program, options, batch, given.wanted, steps, given.with_loss, double=double, whole=whole,
            left_out=_left_out(given), random=given.engine.random, samples=given.batch,
        )  # fmt: skip

    if like is not None:
        beside = made(moved(like.batch), whole=like.whole, steps=like.steps)
        beside.named = {name: apart(x) for name, x in beside.named.items()}
        beside.run_truth()
        return beside
    steps, each = given.steps, _seconds_a_sample(given, double=double)
    if each is None or _estimate(given, each, steps) > _SECONDS / 4:
        steps = min(steps, 1)  # a second one starts at fast weights of each task's own
    trial = made(given.batch, whole=True, steps=steps)
    share = 1.0 if each is None else _SECONDS / max(_estimate(given, each, steps), _SECONDS)
    if share < 1.0 and each is not None:
        some = _some_samples(given.batch, share)
        if some is not None:
            if _estimate(replace(given, batch=some), each, steps) > 1.75 * _SECONDS:
                some = _first_task(some)
            try:
                fewer = made(some, whole=False, steps=steps)
                fewer.run_truth()
                return fewer
            except torch.OutOfMemoryError:
                raise
            except Exception:
                pass  # a module or a loss of just so many samples
    try:
        trial.run_truth()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not double:
            error.add_note(
                "fastmeta held a new plan against a plain loop of torch.autograd over the tasks, and that loop raised "
                'this (proof="first"); it is what the same program meets without fastmeta'
            )
        raise
    return trial


def _estimate(given: _Given, each: float, steps: int) -> float:
    """Seconds that a proof on all samples would take, where a forward takes `each` for a sample.

    In units of a forward: an inner gradient takes 3, its derivative 6 more, and it is computed once without that; a
    query gradient takes 3. All of it by both.
    """
    batch, exact = given.batch, isinstance(given.options.adjoint, Unrolled)
    support = given.options.inner_batch_size or batch.support_samples
    adapts = given.with_loss or batch.query_x is None
    inner = (9 * steps + 3 * min(steps, 1) if exact else 3 * steps + 3) * support if adapts else 0
    return 2 * batch.tasks * each * (inner + 4 * batch.query_samples)


def _seconds_a_sample(given: _Given, *, double: bool) -> float | None:
    """What a forward on few samples says of one; None where that cannot be said."""
    query = given.batch.query_x is not None
    samples = given.batch.query_samples if query else given.batch.support_samples
    few = max(2, samples // 16)
    some = _some_samples(_first_task(given.batch), few / samples)
    if some is None:
        return None
    try:
        trial = Trial(
            given.program, given.options, some, given.wanted, 0, False, double=double, whole=False,
            left_out=True, random=given.engine.random, samples=given.batch,
        )  # fmt: skip
        times: list[float] = []
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            trial.forward()
            times.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None
    return min(times) / (some.query_samples if query else some.support_samples)


def _some_samples(batch: TaskBatch, share: float) -> TaskBatch | None:
    """A share of the samples of each set, evenly spread; None where a set's tensors are not all of as many samples."""

    def some(trees: tuple[Tree, Tree]) -> tuple[Tree, Tree] | None:
        leaves = [x for x in pytree.tree_leaves(trees) if x is not None]
        if not leaves:
            return trees
        if any(x.dim() < 2 for x in leaves) or len({x.shape[1] for x in leaves}) != 1:
            return None
        count = leaves[0].shape[1]
        least = min(count, max(2, int(share * count)))
        index = torch.arange(least, device=leaves[0].device) * count // least
        return pytree.tree_map(lambda x: None if x is None else x.index_select(1, index), trees)

    support, query = some((batch.support_x, batch.support_y)), some((batch.query_x, batch.query_y))
    return None if support is None or query is None else TaskBatch(*support, *query)


def _left_out(given: _Given) -> bool:
    """Whether dropout is: behind a support set's rows the plan's masks are those of other elements."""
    return given.options.bn_statistics == "support" and given.engine.random


def _same_layout(engine: Engine, trial: Trial) -> Engine:
    """The sweeps of `engine` on rows of the trial's dtype, with one plain inner step."""

    def of(objective: Objective) -> Objective:
        plan = _without_dropout(objective.plan) if trial.left_out else objective.plan
        return replace(objective, plan=plan, layout=trial.layout, shared=trial.shared_layout)

    options = trial.options
    loop = replace(
        engine.loop, objective=of(engine.loop.objective), rule=options.rule, steps=trial.steps, recompute=False,
        clip_norm=None, prior=None, first=0,
    )  # fmt: skip
    return replace(
        engine, loop=loop, outer=of(engine.outer), adjoint=options.adjoint, asked=None, meta_wanted=False
    )  # fmt: skip


def _without_dropout(plan: Plan) -> Plan:
    nodes = [replace(node, op=replace(node.op, p=0.0)) if isinstance(node.op, Dropout) else node for node in plan.nodes]
    return replace(plan, nodes=nodes)


def _plain(options: Options) -> Options:
    """Options of the proof: whatever is no part of the sweeps as plain as it can be."""
    known = isinstance(options.adjoint, Unrolled | Identity | Displacement)
    return replace(
        options, inner_optimizer=SGD(lr=0.01), inner_clip_norm=None, prior=None, compile=False, cuda_graph=False,
        memory="save", task_chunk=None, backend="torch", precision="float32", proof="off",
        adjoint=options.adjoint if known else Unrolled(),
    )  # fmt: skip


def _trees(batch: TaskBatch) -> tuple[Tree, ...]:
    return batch.support_x, batch.support_y, batch.query_x, batch.query_y


def _two_tasks(batch: TaskBatch) -> TaskBatch:
    """The first two that are finite, in memory that autograd accepts. Where none is, with zeros for what is not."""
    finite = finite_tasks(*(tree for tree in _trees(batch) if tree is not None))
    index = finite.nonzero().flatten()[:2]
    any_finite = len(index) > 0
    if not any_finite:
        index = torch.arange(min(2, batch.tasks), device=finite.device)

    def of(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = x.detach().index_select(0, index)
        return x if any_finite else torch.nan_to_num(x, 0.0, 0.0, 0.0)

    return TaskBatch(*(pytree.tree_map(of, tree) for tree in _trees(batch)))


def _first_task(batch: TaskBatch) -> TaskBatch:
    return TaskBatch(*(pytree.tree_map(lambda x: None if x is None else x[:1], tree) for tree in _trees(batch)))


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Autograd's usual modes inside, and every stream of random numbers afterwards as it was."""
    devices = (
        [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    )
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  the stream that users seed
    try:
        with (
            torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad(), no_autocast(device.type),
        ):  # fmt: skip
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
