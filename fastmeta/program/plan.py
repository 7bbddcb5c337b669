"""A plan: a module as a straight line of ops over numbered slots, and the four sweeps through it.

Values live in slots: the module's inputs, the step's random keys, parameters, constants, then one slot per op
output. A value that is used twice simply receives two cotangents, so branches (residual networks) need no care.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.internals import pytree
from fastmeta.ops.base import MaybeTensors, Op, Saved, total
from fastmeta.ops.opaque import Opaque

Tape = list[Saved]  # one entry per node


@dataclass(frozen=True)
class Node:
    """One op of a plan.

    `needs` marks the inputs that depend on something that gets a gradient, `moves` those among them that depend on a
    fast weight: an inner step changes these, so only they have tangents, and only they matter for an inner gradient.
    """

    op: Op
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    needs: tuple[bool, ...]
    moves: tuple[bool, ...]
    label: str  # the path of the submodule, or the name of the function, that it stands for
    why: str = ""  # for an opaque op: why it is one
    last_use: tuple[int, ...] = ()  # slots that nobody reads after this node

    @cached_property
    def active(self) -> bool:
        return any(self.needs)

    @cached_property
    def moving(self) -> bool:
        return any(self.moves)

    def pick(self, slots: Sequence[Any]) -> Any:
        """The node's output value(s) out of per-slot storage: a tensor, or a tuple for an op with several."""
        if len(self.outputs) == 1:
            return slots[self.outputs[0]]
        values = tuple(slots[i] for i in self.outputs)
        return None if all(v is None for v in values) else values

    def put(self, slots: list[Any], value: Any) -> None:
        if len(self.outputs) == 1:
            slots[self.outputs[0]] = value
        else:
            for slot, v in zip(self.outputs, value, strict=True):
                slots[slot] = v


class Gradients(NamedTuple):
    """Cotangents of what a plan reads, [T, ...] each; None is zero, or was not asked for."""

    params: list[Tensor | None]  # fast weights
    shared: list[Tensor | None]
    inputs: list[Tensor | None]


class LossPlan(NamedTuple):
    """A loss that was run behind the module, as a plan whose parameters are what moves with the fast weights.

    Its arguments are the module's outputs, the hidden ones among them, then targets. Each is one of the plan's places,
    its inputs and parameters together, of which `moves` says which are parameters.
    """

    plan: Plan
    place_of: tuple[int, ...]  # of each argument
    moves: tuple[bool, ...]  # of each place


@dataclass
class Plan:
    """Sweeps of a module for one set of input shapes.

    Slots: inputs, keys, fast weights, shared parameters, constants, op outputs. Shared parameters get a gradient as
    fast weights do, but all tasks read the same ones in every inner step.
    """

    nodes: list[Node]
    slots: int
    input_slots: list[int]
    keys_slot: int
    param_slots: list[int]
    shared_slots: list[int]
    constant_slots: list[int]
    output_slots: list[int]
    output_spec: pytree.TreeSpec
    output_given: tuple[bool, ...]  # the leaves of that tree: a tensor, or None
    output_active: tuple[bool, ...]  # which outputs depend on something that gets a gradient
    output_moving: tuple[bool, ...]  # and which on a fast weight
    hidden: int  # outputs at the end that only the loss reads: parameters, what the forward has left
    input_wanted: tuple[bool, ...]  # which inputs get a gradient
    input_shapes: list[tuple[int, ...]]  # per task
    output_shapes: list[tuple[int, ...]]  # per task, without the hidden ones
    slot_shapes: list[torch.Size]  # of one task's values
    stored: dict[int, Tensor] = field(default_factory=dict)  # constants made by the module's own code, such as arange
    bytes_per_task: int = 0  # of all values, an estimate for slicing the tasks
    loss: LossPlan | None = None  # where one was run behind the module
    step_constants: tuple[
        int, ...
    ] = ()  # which of the constants say in which inner step it is, where a node reads them

    @cached_property
    def only_fast(self) -> bool:
        """Whether nothing but fast weights gets a gradient, so that both kinds of sweeps are the same."""
        return all(node.needs == node.moves for node in self.nodes) and not (
            self.shared_slots or any(self.input_wanted)
        )

    @cached_property
    def _common(self) -> list[bool]:
        """Which nodes all tasks have in common: positions, masks and what else is made of constants alone."""
        known = {*self.constant_slots, *self.stored}
        common: list[bool] = []
        for node in self.nodes:
            common.append(bool(node.inputs) and known.issuperset(node.inputs))  # keys are each task's own
            if common[-1]:
                known.update(node.outputs)
        return common

    @property
    def random(self) -> bool:
        return any(self.keys_slot in node.inputs for node in self.nodes)

    @cached_property
    def _one_tensor(self) -> bool:
        """Whether the module returns a tensor and no tree: telling that takes a tenth of pytree's time."""
        leaf = object()
        return self.output_given == (True,) and pytree.tree_unflatten([leaf], self.output_spec) is leaf

    def output_tree(self, values: Sequence[Any]) -> Any:
        """One value per output slot in the structure that the module returns."""
        if self._one_tensor:
            return values[0]
        rest = iter(values)
        return pytree.tree_unflatten([next(rest) if given else None for given in self.output_given], self.output_spec)

    def sample_shapes(self, skip: int) -> list[tuple[int, ...]]:
        """One task's output shapes without `skip` rows in front."""
        return [(shape[0] - skip, *shape[1:]) if skip else shape for shape in self.output_shapes]

    def forward(
        self,
        params: Sequence[Tensor],
        shared: Sequence[Tensor],
        inputs: Sequence[Tensor],
        constants: Sequence[Tensor],
        keys: Tensor,
        *,
        keep: bool = True,
    ) -> tuple[list[Tensor], Tape]:
        """Outputs of all tasks, and the tape for the other sweeps (empty entries where `keep` is false).

        `params` and `inputs` are [T, ...]; `shared` parameters and `constants` are as the module holds them.
        """
        tasks = keys.shape[0]
        env: list[Any] = [None] * self.slots
        env[self.keys_slot] = keys
        for slots, values in ((self.input_slots, inputs), (self.param_slots, params)):
            for slot, value in zip(slots, values, strict=True):
                env[slot] = value
        for slots, values in ((self.shared_slots, shared), (self.constant_slots, constants)):
            for slot, value in zip(slots, values, strict=True):
                env[slot] = value.expand(tasks, *value.shape)
        for slot, value in self.stored.items():
            env[slot] = value.expand(tasks, *value.shape)
        tape: Tape = []
        for node, common in zip(self.nodes, self._common, strict=True):
            if common:
                y, saved = node.op.forward(*[env[i][:1] for i in node.inputs])
                y = y.expand(tasks, *y.shape[1:]) if isinstance(y, Tensor) else _for_tasks(y, tasks)
            else:
                y, saved = node.op.forward(*[env[i] for i in node.inputs])
            tape.append(saved if keep and node.active else None)
            node.put(env, y)
            for slot in node.last_use:
                env[slot] = None
        return [env[i] for i in self.output_slots], tape

    def backward(
        self, tape: Tape, d_outputs: Sequence[Tensor | None], *, keep: bool = False, whole: bool = False
    ) -> tuple[Gradients, list[Any]]:
        """Cotangents of the fast weights, of all that gets a gradient where `whole` asks for it.

        The second result has those of every node's output where `keep` asks for them. Without `keep` the tape is
        consumed: an entry is released as soon as it has been used.
        """
        d = self._seed(d_outputs)
        cotangents: list[Any] = [None] * len(self.nodes)
        for i in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[i]
            dy = node.pick(d)
            if dy is None or not (node.active if whole else node.moving):
                continue
            needs = node.needs if whole else node.moves
            self._accumulate(d, node, needs, node.op.backward(tape[i], dy, needs))
            if keep:
                cotangents[i] = dy
            else:
                tape[i] = None
        return self._collected(d), cotangents

    def forward_dot(self, tape: Tape, params_dot: Sequence[Tensor]) -> tuple[list[Tensor | None], Tape]:
        """Tangents of the outputs along `params_dot`, tangents of the fast weights."""
        dot: list[Any] = [None] * self.slots
        for slot, value in zip(self.param_slots, params_dot, strict=True):
            dot[slot] = value
        tape_dot: Tape = []
        for node, saved in zip(self.nodes, tape, strict=True):
            if not node.moving:
                tape_dot.append(None)
                continue
            y_dot, saved_dot = node.op.forward_dot(saved, tuple([dot[i] for i in node.inputs]))
            tape_dot.append(saved_dot)
            node.put(dot, y_dot)
            for slot in node.last_use:
                dot[slot] = None
        return [dot[i] for i in self.output_slots], tape_dot

    def backward_dot(
        self, tape: Tape, tape_dot: Tape, cotangents: list[Any], d_outputs_dot: Sequence[Tensor | None]
    ) -> Gradients:
        """Tangents of the cotangents of all that gets a gradient: of fast weights the Hessian-vector product, of the
        rest the mixed second derivative along `params_dot`. Consumes all three tapes.

        `cotangents` are those of an inner gradient. What does not move has a tangent of its cotangent all the same,
        where something behind it moves: from there on the sweep is the plain backward one.
        """
        d = self._seed(d_outputs_dot)
        for i in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[i]
            dy_dot = node.pick(d)
            if cotangents[i] is not None and node.moving:
                assert dy_dot is not None, "a value that moves and has a cotangent has a tangent of it"
                terms = node.op.backward_dot(tape[i], tape_dot[i], cotangents[i], dy_dot, node.needs)
            elif dy_dot is not None and node.active:
                terms = node.op.backward(tape[i], dy_dot, node.needs)
            else:
                continue
            self._accumulate(d, node, node.needs, terms)
            tape[i] = tape_dot[i] = cotangents[i] = None
        return self._collected(d)

    def _collected(self, d: Sequence[Tensor | None]) -> Gradients:
        if self.only_fast:
            return Gradients([d[s] for s in self.param_slots], [], [None] * len(self.input_slots))
        inputs = [d[s] if wanted else None for s, wanted in zip(self.input_slots, self.input_wanted, strict=True)]
        return Gradients([d[s] for s in self.param_slots], [d[s] for s in self.shared_slots], inputs)

    def _seed(self, d_outputs: Sequence[Tensor | None]) -> list[Any]:
        d: list[Any] = [None] * self.slots
        for slot, value in zip(self.output_slots, d_outputs, strict=True):
            d[slot] = total(d[slot], value)
        return d

    @staticmethod
    def _accumulate(d: list[Any], node: Node, needs: tuple[bool, ...], d_inputs: MaybeTensors) -> None:
        for slot in node.outputs:
            d[slot] = None
        for slot, need, value in zip(node.inputs, needs, d_inputs, strict=True):
            if need:
                d[slot] = total(d[slot], value)


def _for_tasks(values: Sequence[Tensor], tasks: int) -> tuple[Tensor, ...]:
    return tuple(y.expand(tasks, *y.shape[1:]) for y in values)


def with_last_use(nodes: Sequence[Node], pinned: set[int]) -> list[Node]:
    """Marks after which node each intermediate value may be released."""
    kept: set[int] = set(pinned)  # what the module's caller or a later node reads
    marked: list[Node] = []
    for node in reversed(nodes):
        last = tuple({*node.inputs, *node.outputs} - kept)
        kept.update(last)
        marked.append(replace(node, last_use=last))
    return marked[::-1]


def seeded_in_python(*plans: Plan) -> list[str]:
    """The opaque ops that draw random numbers: Python seeds the generator for each task, in every sweep anew."""
    nodes = [node for plan in plans for node in plan.nodes]
    return sorted({node.label for node in nodes if isinstance(node.op, Opaque) and node.op.random})
