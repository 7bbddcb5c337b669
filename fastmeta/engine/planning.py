"""The backend for one set of shapes: plans, objectives, engine, and what runs them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmeta.internals import pytree
from fastmeta.program.losses import check_targets_of, loss_op, run_of
from fastmeta.program.plan import Plan, seeded_in_python
from fastmeta.program.program import Program, leaves_of
from fastmeta.program.trace import Untraceable
from fastmeta.reference import task_outputs

from .adjoint import Displacement, Identity, Implicit, Unrolled
from .backends.base import Backend
from .backends.choose import choose
from .backends.one_by_one import OneByOne
from .backends.pays import loop_pays
from .backends.torch_ops import TorchBackend
from .batch import TaskBatch, Tree
from .loop import InnerLoop
from .meta_step import Engine
from .objective import Context, Data, Objective
from .options import Kind, Options


def make_backend(program: Program, options: Options, batch: TaskBatch, kind: Kind, *, with_loss: bool) -> Backend:
    """What runs meta-steps, adaptation and query passes on batches like this one.

    Raises:
        RuntimeError: backend="triton" was asked for and cannot run it.
        ValueError: options or data that do not go together.
    """
    try:
        engine = make_engine(program, options, batch, kind, with_loss=with_loss)
    except Untraceable as reason:
        return task_by_task(program, options, batch, kind, str(reason))
    choice = choose(options.backend, program.layout.device, engine, start=kind.start)
    if choice.graph is not None:
        from .backends.triton import TritonBackend

        kernels = TritonBackend(
            engine, choice.graph, batch.tasks, chunk=options.task_chunk, precision=options.precision
        )
        kernels.choice = choice
        return kernels
    if options.precision == "bfloat16" and choice.candidate is None:
        raise ValueError(
            f'precision="bfloat16" needs Triton kernels, and this runs on the torch backend ({choice.why}). Use '
            'precision="float32" or "tf32"'
        )
    if options.backend == "auto" and (why := _loop_pays(engine, options, batch.tasks)):
        return task_by_task(program, options, batch, kind, why)
    made = TorchBackend(engine, batch.tasks, chunk=options.task_chunk, compiled=options.compile)
    made.choice = choice
    return made


def _loop_pays(engine: Engine, options: Options, tasks: int) -> str:
    """Why the plain loop, which holds all tasks in memory, is the faster way; empty where it is not, or no way."""
    fits = options.memory == "save" and options.task_chunk is None and not options.compile
    fits = fits and not isinstance(options.adjoint, Implicit)  # which the loop solves twice
    on_cpu = engine.outer.layout.device.type == "cpu"
    return loop_pays(engine, tasks) if fits and on_cpu and not _not_in_the_loop(options) else ""


def _not_in_the_loop(options: Options) -> str:
    """The name of an option that the plain loop does not have; empty where it has all."""
    if options.precision == "bfloat16":
        return "precision"
    if not isinstance(options.adjoint, Unrolled | Identity | Displacement | Implicit):
        return "adjoint"
    return "prior" if options.prior is not None and not hasattr(options.prior, "value") else ""


def task_by_task(program: Program, options: Options, batch: TaskBatch, kind: Kind, why: str) -> OneByOne:
    """The plain loop of autograd over the tasks, for a program that cannot run on all of them at once.

    Raises:
        RuntimeError: backend="triton" was asked for.
        ValueError: an option that the plain loop does not have.
    """
    if options.backend == "triton":
        raise RuntimeError(
            f'backend="triton": the program can only run task by task under plain autograd ({why}). Use backend="auto"'
        )
    if name := _not_in_the_loop(options):
        raise ValueError(
            f"{name}={getattr(options, name)!r} needs a program that runs on all tasks at once, and this one can only "
            f"run task by task under plain autograd: {why}. Change that in the module or the loss, or use another "
            f"{name}"
        )
    return OneByOne(program.module, program, options, batch, kind, why)


def make_engine(program: Program, options: Options, batch: TaskBatch, kind: Kind, *, with_loss: bool) -> Engine:
    """The engine for batches like this one."""
    inner = _inner_objective(program, options, batch, kind.steps)
    outer = Objective(inner.plan, None, program.layout, program.shared)
    if batch.query_x is not None:
        outer = _outer_objective(program, options, batch, with_loss=with_loss)
    if options.compile:
        _refuse_compiled_draws(inner.plan, outer.plan)
    loop = InnerLoop(
        inner, options.rule, kind.steps, options.inner_batch_size, options.memory == "recompute",
        options.inner_clip_norm, options.prior, kind.first,
    )  # fmt: skip
    engine = Engine(
        loop, outer, options.adjoint, kind.asked, kind.meta_wanted, kind.ends, options.query_batch_size
    )  # fmt: skip
    if outer.skip and not engine.random:
        _check_apart(engine, program, batch)
    return engine


@torch.no_grad()
def _check_apart(engine: Engine, program: Program, batch: TaskBatch) -> None:
    """Support samples run in front of query samples for the sake of batch norm: nothing else may see them.

    Told by the outputs of the first task, beside those of the module on its query set alone.

    Raises:
        Untraceable: they differ.
    """
    named = {name: p.detach() for name, p in program.module.named_parameters()}
    first = TaskBatch(
        *(pytree.tree_map_only(Tensor, lambda x: x[:1].detach(), tree) for tree in (batch.support_x, None)),
        *(pytree.tree_map_only(Tensor, lambda x: x[:1].detach(), tree) for tree in (batch.query_x, None)),
    )
    keys = torch.zeros(1, dtype=torch.int64, device=program.layout.device)
    context = Context(tuple(program.shared.take(named)), program.constants(), keys)
    phi = program.layout.row(tuple(program.layout.take(named))).unsqueeze(0)
    ys = engine.outputs(phi, Data(leaves_of(first.support_x), ()), leaves_of(first.query_x), context)
    one = {name: p.unsqueeze(0) for name, p in named.items()}
    step = max(engine.loop.first + engine.loop.steps - 1, 0)
    (true,) = task_outputs(program.module, one, first.query_x, support_x=first.support_x, inner_step=step)
    for y, want in zip(ys, leaves_of(true), strict=False):
        if not _agree(y[0], want):
            raise Untraceable(
                'with bn_statistics="support" its forward mixes samples by something else than a batch norm, and '
                "queries would see the support set"
            )


def _agree(y: Tensor, want: Tensor) -> bool:
    """Whether these are the outputs of two right forwards."""
    if y.shape != want.shape or not (want.is_floating_point() or want.is_complex()):
        return torch.equal(y, want)
    y, want = (torch.nan_to_num(x, 0.0, 0.0, 0.0) for x in (y, want))
    near, largest = 10 * torch.finfo(want.dtype).eps ** 0.5, float(want.abs().max()) if want.numel() else 0.0
    return torch.allclose(y, want, rtol=near, atol=near * largest)


def _inner_objective(program: Program, options: Options, batch: TaskBatch, steps: int) -> Objective:
    size = options.inner_batch_size
    head_x, head_y = pytree.tree_map_only(
        Tensor, lambda x: x if size is None else x[:, :size], (batch.support_x, batch.support_y)
    )
    targets = wanted(batch.support_y)
    run = run_of("inner_loss", options.inner_loss, head_y, targets)
    plan = program.plan(head_x, wanted=wanted(batch.support_x), loss=run)
    if steps and not any(plan.output_moving):
        raise ValueError(
            "inner_loss depends on no parameter that the inner loop moves, so there is nothing to adapt; check what "
            "adapts() says, and that the module does not detach its result"
        )
    check_targets_of("support_y", options.inner_loss, plan, leaves_of(batch.support_y), batch=size)
    return Objective(
        plan, loss_op("inner_loss", options.inner_loss, plan, head_y), program.layout, program.shared, 0, targets
    )


def _outer_objective(program: Program, options: Options, batch: TaskBatch, *, with_loss: bool) -> Objective:
    size = options.query_batch_size
    if size is not None and with_loss:
        some = pytree.tree_map_only(Tensor, lambda x: x[:, :size], (batch.query_x, batch.query_y))
        batch = TaskBatch(batch.support_x, batch.support_y, *some)
    skip, inputs, inputs_wanted = 0, batch.query_x, wanted(batch.query_x)
    if options.bn_statistics == "support":
        skip = batch.support_samples
        inputs = pytree.tree_map(lambda a, b: torch.cat([a, b], 1), batch.support_x, batch.query_x)
        inputs_wanted = tuple(map(any, zip(wanted(batch.support_x), inputs_wanted, strict=True)))
    targets = wanted(batch.query_y)
    run = run_of("outer_loss", options.outer_loss, batch.query_y, targets, skip=skip) if with_loss else None
    plan = program.plan(inputs, rows=skip or None, wanted=inputs_wanted, loss=run)
    if not with_loss:
        return Objective(plan, None, program.layout, program.shared, skip)
    check_targets_of("query_y", options.outer_loss, plan, leaves_of(batch.query_y), skip=skip)
    loss = loss_op("outer_loss", options.outer_loss, plan, batch.query_y, skip=skip)
    return Objective(plan, loss, program.layout, program.shared, skip, targets)


def wanted(tree: Tree) -> tuple[bool, ...]:
    """Which of a tree's tensors get a gradient."""
    return tuple(x.requires_grad and torch.is_grad_enabled() for x in leaves_of(tree))


def _refuse_compiled_draws(*plans: Plan) -> None:
    """An opaque op seeds its random numbers in Python, which a compiled step would do once and for all.

    Raises:
        ValueError: such an op is in one of the plans.
    """
    drawn: Sequence[str] = seeded_in_python(*plans)
    if drawn:
        raise ValueError(
            f"compile=True cannot take random numbers drawn inside {', '.join(drawn)}, which has no op of its "
            "own; use compile=False, nn.Dropout for the randomness, or eval mode"
        )
