"""A plan in two: what no fast weight reaches, which is the same in every inner step, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from .plan import Node, Plan, with_last_use


class Split(NamedTuple):
    """Two plans over the slots of the one that they were made of.

    The stem's outputs are what the rest reads of it; they are inputs of the rest, behind all of the plan's own.
    """

    stem: Plan
    rest: Plan


def split(plan: Plan) -> Split | None:
    """The stem and the rest of a plan; None where all of it depends on fast weights, on random
    numbers or on which inner step it is.

    What counts is which values an op reads, not what it is differentiated by: a detached value moves all the same. The
    rest shares no parameters with the stem where it reads none: its `shared_slots` are empty then.
    """
    of_step = {plan.constant_slots[i] for i in plan.step_constants}
    known = {*plan.input_slots, *plan.shared_slots, *plan.constant_slots, *plan.stored} - of_step
    stem: list[Node] = []
    rest: list[Node] = []
    for node in plan.nodes:
        if node.inputs and known.issuperset(node.inputs):
            stem.append(node)
            known.update(node.outputs)
        else:
            rest.append(node)
    if not stem:
        return None
    outputs = set(plan.output_slots)
    read = _read(rest) | outputs
    between = [slot for node in stem for slot in node.outputs if slot in read]
    needed = {slot for node in rest for slot, need in zip(node.inputs, node.needs, strict=True) if need}
    needed |= {slot for slot, active in zip(plan.output_slots, plan.output_active, strict=True) if active}
    active = tuple(slot in needed for slot in between)
    inputs = [*plan.input_slots, *between]
    shared = plan.shared_slots if read.intersection(plan.shared_slots) else []
    shapes = [plan.slot_shapes[slot] for slot in between]
    return Split(
        replace(
            plan, nodes=_marked(plan, stem, set(between)), param_slots=[], output_slots=between, output_active=active,
            output_moving=(False,) * len(between), hidden=0, output_shapes=shapes, stored=_stored(plan, _read(stem)),
            loss=None,
        ),
        replace(
            plan, nodes=_marked(plan, rest, outputs), shared_slots=shared, input_slots=inputs,
            input_wanted=tuple(slot in needed for slot in inputs), input_shapes=[*plan.input_shapes, *shapes],
            stored=_stored(plan, read),
        ),
    )  # fmt: skip


def _read(nodes: Sequence[Node]) -> set[int]:
    return {slot for node in nodes for slot in node.inputs}


def _stored(plan: Plan, read: set[int]) -> dict:
    return {slot: value for slot, value in plan.stored.items() if slot in read}


def _marked(plan: Plan, nodes: list[Node], outputs: set[int]) -> list[Node]:
    return with_last_use(nodes, {*outputs, *plan.param_slots, *plan.shared_slots, *plan.constant_slots, *plan.stored})
