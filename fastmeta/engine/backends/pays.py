"""Whether a plain loop over the tasks is faster than a plan with opaque ops, on a CPU.

An opaque op takes torch.func's time once for all tasks, and then twice the arithmetic of a loop, as its sweeps compute
what came before again. The estimates are milliseconds of a core of 2025; only their ratios matter.
"""

from __future__ import annotations

from math import prod

from fastmeta.engine.meta_step import Engine
from fastmeta.ops.opaque import Opaque
from fastmeta.program.plan import Plan

_OWN, _OPAQUE, _STEP = 0.25, 1.8, 0.8
"""Of an op with sweeps of its own, of an opaque one, and of the rest of an inner step, whatever the number of tasks."""
_CALL, _TASK = 0.06, 0.4
"""Of a call and of the rest of an inner step, in a plain loop, for each task."""
_ELEMENT = 50e-6
"""Of each element that an opaque op reads or makes, for each task, in a plain loop."""
_AT_MOST = 1.1


def loop_pays(engine: Engine, tasks: int) -> str:
    """Why a plain loop is faster than the engine; empty where it is not."""
    found = [node for plan in engine.plans for node in plan.nodes if node.active and isinstance(node.op, Opaque)]
    if not found:
        return ""
    opaque = [node.label for node in found]
    ops = sum(tasks if isinstance(node.op, Opaque) and node.op.random else 1 for node in found)  # draws go one by one
    nodes = sum(len(plan.nodes) for plan in engine.plans)
    work = _ELEMENT * sum(map(_opaque_elements, engine.plans))
    planned = _STEP + _OWN * (nodes - len(opaque)) + _OPAQUE * ops + 2 * work * tasks
    loop = tasks * (_TASK + _CALL * nodes + work)
    if planned <= _AT_MOST * loop:
        return ""
    return f"{', '.join(dict.fromkeys(opaque))} would run through torch.func, slower than a loop over {tasks} task(s)"


def _opaque_elements(plan: Plan) -> int:
    nodes = [node for node in plan.nodes if node.active and isinstance(node.op, Opaque)]
    return sum(prod(plan.slot_shapes[i]) for node in nodes for i in (*node.inputs, *node.outputs))
