"""What `explain()` says: which backend runs a model and why, and op by op how."""

from __future__ import annotations

from fastmeta.ops.opaque import Opaque
from fastmeta.program.losses import PlannedLoss
from fastmeta.program.plan import Node, Plan
from fastmeta.program.program import Program

from .backends.base import Planned
from .backends.choose import choose
from .backends.cuda_graph import REFERENCE, obstacle
from .backends.one_by_one import OneByOne
from .meta_step import Engine
from .options import Options
from .session import PlanCache


def explain(title: str, program: Program, options: Options, plans: PlanCache) -> str:
    """A report of a meta-learner: a line per op after the first call, a line on tracing before it."""
    latest = plans.latest
    engine = latest.engine if isinstance(latest, Planned) else None
    if options.backend == "auto" and isinstance(latest, Planned):
        choice = latest.choice
    else:
        choice = choose(options.backend, program.layout.device, engine)
    values, shared = (sum(s.numel() for s in layout.shapes) for layout in (program.layout, program.shared))
    steps = f"{options.inner_steps} inner step(s)"
    if options.query_batch_size is not None:
        steps = f"a query loss of {options.query_batch_size} samples at each inner step"
    lines = [
        f"{title}, {steps}, {options.inner_optimizer}",
        f"backend: {choice.backend} ({choice.why})" + (", compiled whole" if options.compile else ""),
        f"parameters: {values + shared:,} trainable, in one buffer of {program.layout.size:,} a task",
    ]
    if shared:
        lines.append(f"of which {shared:,} are shared by all tasks: {', '.join(program.shared.names)}")
    if program.step_names:
        lines.append(f"inner step: the model reads it in {', '.join(program.step_names)}")
    if options.inner_clip_norm is not None:
        lines.append(f"inner gradients: clipped to a norm of {options.inner_clip_norm:g}")
    if options.prior is not None:
        lines.append(f"support loss: with the prior {options.prior}")
    if options.cuda_graph:
        lines.append(f"CUDA graphs: {_graphs(program, options, plans)}")
    if choice.backend == "reference":
        return "\n".join([*lines, "one task at a time, autograd through the unrolled loop"])
    if isinstance(latest, OneByOne) and latest.why:
        return "\n".join([*lines, f"task by task under plain autograd: {latest.why}"])
    if engine is None or not isinstance(latest, Planned):
        return "\n".join([*lines, "the plan is made for the shapes of the first batch: call explain() after it"])
    chunk = "" if latest.chunk is None else f", {latest.chunk} task(s) at a time"
    lines += [f"memory: {options.memory}{chunk}", f"proof: {latest.proof or 'off'}", *choice.details]
    once = _once(engine, choice.backend)
    lines += [
        f"inner loop{_how_many(engine, once)}:",
        *_table(engine.loop.objective.plan, latest.runs_by, once),
        f"  loss: {_loss(engine.loop.objective.loss, latest.runs_by)}",
    ]
    if engine.outer.loss is not None:
        lines += ["query pass:", *_table(engine.outer.plan, latest.runs_by, set())]
        lines += [f"  loss: {_loss(engine.outer.loss, latest.runs_by)}"]
    return "\n".join(lines)


def _graphs(program: Program, options: Options, plans: PlanCache) -> str:
    if options.backend == "reference":
        return f"none: {REFERENCE}"
    if plans.latest_graphs is not None:
        return plans.latest_graphs.state
    why_not = obstacle(program.layout.device)
    return f"none: {why_not}" if why_not else "recorded at the second meta-step on data of a shape"


def _once(engine: Engine, backend: str) -> set[tuple[int, ...]]:
    """The outputs of the ops that run once and not in every inner step."""
    return set() if engine.stem is None or backend != "torch" else {node.outputs for node in engine.stem.plan.nodes}


def _how_many(engine: Engine, once: set[tuple[int, ...]]) -> str:
    if not once:
        return ""
    count = len(engine.loop.objective.plan.nodes)
    return f", {len(once)} of {count} op(s) computed once, as no fast weight reaches them"


def _table(plan: Plan, own: str, once: set[tuple[int, ...]]) -> list[str]:
    width = max((len(node.label) for node in plan.nodes), default=0)
    return [
        f"  {node.label:<{width}}  {node.op.name:<14} {_means(node, own)}" + ", once" * (node.outputs in once)
        for node in plan.nodes
    ]


def _means(node: Node, own: str) -> str:
    """By what an op runs, and whether it takes part in the inner loop."""
    means = f"opaque through torch.func: {node.why}" if isinstance(node.op, Opaque) else own
    if not node.active:
        return f"{means}, constant (no trainable parameter before it)"
    return means if node.moving else f"{means}, the same for all tasks (only shared parameters before it)"


def _loss(op: object, own: str) -> str:
    if not isinstance(op, PlannedLoss):
        return f"{type(op).__name__}, {own}"
    opaque = dict.fromkeys(node.label for node in op.behind.plan.nodes if isinstance(node.op, Opaque))
    return f"{op.name}, " + (f"opaque through torch.func: {', '.join(opaque)}" if opaque else own)
