"""What `explain()` says: which backend runs a model and why, and op by op how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmeta.engine.backends.choose import choose
from fastmeta.engine.backends.cuda_graph import REFERENCE, obstacle
from fastmeta.ops.opaque import Opaque, OpaqueLoss
from fastmeta.program.plan import Plan

if TYPE_CHECKING:
    from fastmeta.algorithms.base import MetaLearner


def explain(learner: MetaLearner) -> str:
    """A report of a meta-learner: a line per op after the first call, a line on tracing before it."""
    program = learner._sessions.program(learner)
    last = learner._sessions.last
    choice = choose(learner.backend, program.layout.device, None if last is None else last.engine)
    lines = [
        f"{type(learner).__name__}, {learner.inner_steps} inner step(s), {learner.inner_optimizer}",
        f"backend: {choice.backend} ({choice.why})" + (", compiled whole" if learner.compile_step else ""),
        f"parameters: {sum(s.numel() for s in program.layout.shapes):,} trainable, in one buffer of "
        f"{program.layout.size:,} a task",
    ]
    if learner.cuda_graph:
        lines.append(f"CUDA graphs: {_graphs(learner)}")
    if choice.backend == "reference":
        return "\n".join([*lines, "one task at a time, autograd through the unrolled loop"])
    if program.untraceable:
        lines.append(f"the whole module is one opaque op: {program.untraceable}")
    last = learner._sessions.last
    if last is None:
        return "\n".join([*lines, "the plan is made for the shapes of the first batch: call explain() after it"])
    lines += [f"memory: {learner.memory}" + ("" if last.chunk is None else f", {last.chunk} task(s) at a time")]
    lines += [
        "inner loop:",
        *_table(last.engine.loop.objective.plan, last.how),
        f"  loss: {_loss(last.engine.loop.objective.loss, last.how)}",
    ]
    if last.engine.outer.loss is not None:
        lines += ["query pass:", *_table(last.engine.outer.plan, last.how)]
        lines += [f"  loss: {_loss(last.engine.outer.loss, last.how)}"]
    return "\n".join(lines)


def _graphs(learner: MetaLearner) -> str:
    if learner.backend == "reference":
        return f"none: {REFERENCE}"
    last = learner._sessions.last_graphs
    if last is not None:
        return last.how
    why_not = obstacle(learner._sessions.program(learner).layout.device)
    return f"none: {why_not}" if why_not else "recorded at the second meta-step on data of a shape"


def _table(plan: Plan, own: str) -> list[str]:
    width = max((len(node.label) for node in plan.nodes), default=0)
    rows = []
    for node in plan.nodes:
        opaque = isinstance(node.op, Opaque)
        how = f"opaque through torch.func: {node.why}" if opaque else own
        if not node.active:
            how += ", constant (no trainable parameter before it)"
        rows.append(f"  {node.label:<{width}}  {node.op.name:<14} {how}")
    return rows


def _loss(op: object, own: str) -> str:
    if isinstance(op, OpaqueLoss):
        return f"{op.name}, opaque through torch.func"
    return f"{type(op).__name__}, {own}"
