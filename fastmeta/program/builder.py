"""A plan under construction: every call of a trace becomes an op of its own (lowering) or an opaque one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.internals import FakeTensorMode, pytree
from fastmeta.ops.base import Op
from fastmeta.ops.opaque import Opaque
from fastmeta.ops.shape import Reshape

from .fuse import group
from .lowering import RULES, NotKnown, Rule, Slot
from .plan import LossPlan, Node, Plan, with_last_use
from .trace import Call, Trace, Untraceable, Value, needed


class Builder:
    """A plan under construction; what the rules of lowering/ are given as `to`.

    Args:
        device: where the plan runs.
        rows: batch norm takes its statistics from the first so many samples; None: from all.
    """

    def __init__(self, device: torch.device, rows: int | None = None) -> None:
        self.rows = rows
        self.nodes: list[Node] = []
        self.count = 0
        self.active: list[bool] = []  # of every slot: does it depend on something that gets a gradient
        self.moving: list[bool] = []  # and on a fast weight
        self.shapes: list[torch.Size] = []
        self.sizes: list[int] = []
        self.stored: dict[int, Tensor] = {}
        self.slots: dict[int, Slot] = {}  # of values, by id
        self.label = ""
        self._fixed = False  # is what is being emitted without a gradient, whatever it is made of
        self._layers = 0
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._keys = self._slot(torch.empty((), dtype=torch.int64, device=device), False)

    def give(self, value: Value, *, moving: bool = False) -> Slot:
        """The slot of a value that the plan is handed."""
        if id(value) not in self.slots:
            self.slots[id(value)] = self._slot(value.like, value.gradient, moving)
        return self.slots[id(value)]

    def _slot(self, like: Tensor, active: bool, moving: bool = False) -> Slot:
        self.active.append(active)
        self.moving.append(moving)
        self.shapes.append(like.shape)
        self.sizes.append(like.numel() * like.element_size())
        self.count += 1
        return Slot(self.count - 1, like)

    # what rules use -------------------------------------------------------------------------------------------------

    def emit(self, op: Op, *inputs: Slot) -> Slot:
        """Adds a node of `op`, which has one output, and gives the output's slot."""
        with torch.no_grad():
            like = self._like(op, inputs)
        needs, moves = self._needs(inputs)
        out = self._slot(like, any(needs), any(moves))
        self.nodes.append(Node(op, tuple(s.index for s in inputs), (out.index,), needs, moves, self.label))
        return out

    def constant(self, value: Tensor) -> Slot:
        """The slot of a tensor that is the same for all tasks."""
        slot = self._slot(value, False)
        self.stored[slot.index] = value
        return slot

    def keys(self) -> Slot:
        """The slot of the step's random keys [T]."""
        return self._keys

    def next_layer(self) -> int:
        """A number of its own for each call that draws random numbers, from 0."""
        self._layers += 1
        return self._layers - 1

    # --------------------------------------------------------------------------------------------------------------

    def _needs(self, inputs: Sequence[Slot]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Which inputs get a gradient, and which of them move."""
        smooth = [s.index for s in inputs if not self._fixed and _has_derivative(s.like)]
        return (
            tuple(s.index in smooth and self.active[s.index] for s in inputs),
            tuple(s.index in smooth and self.moving[s.index] for s in inputs),
        )

    def _like(self, op: Op, inputs: Sequence[Slot]) -> Tensor:
        """The op's output for one task, on data-free tensors."""
        device = inputs[0].like.device
        try:  # on the meta device, which takes a tenth of the time
            y, _ = op.forward(*_one_task(inputs, torch.device("meta")))
            with self._mode:
                return torch.empty(y.shape[1:], dtype=y.dtype, device=device)
        except Exception:  # an op that holds a tensor with data, which does not go with others of that device
            with self._mode:
                y, _ = op.forward(*_one_task(inputs, None))
                return y[0]

    def lower(self, calls: Sequence[Call], wanted: Sequence[Value]) -> list[Slot]:
        """Adds what `wanted` values need of some calls, and gives the values' slots.

        Raises:
            Untraceable: a call reads what no op has made.
        """
        for call in needed(calls, wanted):
            self._lower(call)
        return [self._of(v) for v in wanted]

    def _of(self, leaf: Any) -> Any:
        """The slot of a value; anything else as it is."""
        if not isinstance(leaf, Value):
            return leaf
        if id(leaf) not in self.slots:
            if leaf.stored is None:
                raise Untraceable(f"{self.label} reads what PyTorch writes beside a result, which no op has")
            self.slots[id(leaf)] = self.constant(leaf.stored)
        return self.slots[id(leaf)]

    def _lower(self, call: Call) -> None:
        self.label = call.label
        made = [v for v in call.made if v is not None]
        if all(v.stored is not None for v in made):
            return
        leaves, spec = call.flat
        slots = [self._of(leaf) for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(slots, spec)
        self._fixed = not any(v.gradient for v in made)
        rule = RULES.get(call.function)
        nodes = len(self.nodes)
        try:
            if rule is None:
                raise NotKnown("no op of its own")
            if any(isinstance(s, Slot) and s.like.is_complex() for s in slots):
                raise NotKnown("complex numbers")  # whose cotangents are conjugated
            _check_arguments(rule, self, *args, **kwargs)
            out = pytree.tree_leaves(rule(self, *args, **kwargs))
            _check_results(call, out)
        except NotKnown as reason:
            del self.nodes[nodes:]
            out = self._opaque(call, [s for s in slots if isinstance(s, Slot)], str(reason))
        slot_of = {id(v.like): slot for v, slot in zip(call.made, out, strict=False) if v is not None}
        for value in made:
            if id(value.like) in slot_of:  # x.add_(y) gives x, and has written it: two values, one tensor
                self.slots[id(value)] = self._as_autograd_has_it(value, slot_of[id(value.like)])

    def _as_autograd_has_it(self, value: Value, slot: Slot) -> Slot:
        """A rule may hand on what it was given; under no_grad, the result has no gradient all the same."""
        if value.gradient == self.active[slot.index]:
            return slot
        if value.gradient:
            raise Untraceable(f"{self.label} has a gradient where none was found")
        self._fixed = True
        return self.emit(Reshape(slot.shape), slot)

    def _opaque(self, call: Call, inputs: list[Slot], why: str) -> list[Slot]:
        """A node of a call as an opaque op; the slots of what it makes, with None where that is no tensor."""
        leaves = call.flat[0]
        where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Value)]
        given = [None if isinstance(leaf, Value) else leaf for leaf in leaves]
        made = [v for v in call.made if v is not None]

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            filled = list(given)
            for i, x in zip(where, tensors, strict=True):
                filled[i] = x
            return tuple(x for x, v in zip(call.run(filled), call.made, strict=True) if v is not None)

        name = getattr(call.function, "__name__", call.label)
        layer, smooth = self.next_layer() if call.random else 0, tuple(v.gradient for v in made)
        op = Opaque(run, name, call.random, layer, None if all(smooth) else smooth)
        needs, moves = self._needs(inputs)
        outs = [self._slot(v.like, any(needs) and v.gradient, any(moves) and v.gradient) for v in made]
        slots = inputs
        if call.random:
            slots, needs, moves = [*inputs, self._keys], (*needs, False), (*moves, False)
        self.nodes.append(
            Node(op, tuple(s.index for s in slots), tuple(s.index for s in outs), needs, moves, self.label, why)
        )
        rest = iter(outs)
        return [None if v is None else next(rest) for v in call.made]  # pyright: ignore[reportReturnType]

    def plan(
        self, given: Given, outputs: Sequence[Slot], structure: Structure, *, hidden: int = 0,
        loss: LossPlan | None = None,
    ) -> Plan:  # fmt: skip
        """The plan of what was added, from slots that it is given to `outputs`, the last of which are `hidden`."""
        nodes = group(self.nodes, {s.index for s in outputs})
        pinned = {s.index for s in (*outputs, *given.params, *given.shared, *given.constants)} | set(self.stored)
        return Plan(
            nodes=with_last_use(nodes, pinned),
            slots=self.count,
            input_slots=[s.index for s in given.inputs],
            keys_slot=self._keys.index,
            param_slots=[s.index for s in given.params],
            shared_slots=[s.index for s in given.shared],
            constant_slots=[s.index for s in given.constants],
            output_slots=[s.index for s in outputs],
            output_spec=structure.spec,
            output_given=structure.given,
            output_active=tuple(self.active[s.index] for s in outputs),
            output_moving=tuple(self.moving[s.index] for s in outputs),
            hidden=hidden,
            input_wanted=tuple(self.active[s.index] for s in given.inputs),
            input_shapes=[s.shape for s in given.inputs],
            output_shapes=[s.shape for s in outputs[: len(outputs) - hidden]],
            slot_shapes=self.shapes,
            stored=self.stored,
            bytes_per_task=sum(self.sizes),
            loss=loss,
        )


class Given(NamedTuple):
    """The slots that a plan is handed."""

    inputs: Sequence[Slot]
    params: Sequence[Slot]
    shared: Sequence[Slot] = ()
    constants: Sequence[Slot] = ()


class Structure(NamedTuple):
    """What the module returns: a tree whose leaves are tensors where `given` says so, or None."""

    spec: pytree.TreeSpec
    given: tuple[bool, ...]


def loss_plan(trace: Trace, whole: Builder) -> LossPlan:
    """The loss of a trace behind the module's plan, which `whole` has built, as a plan of its own.

    Its parameters are what moves with the fast weights.
    """
    loss = trace.loss
    assert loss is not None
    builder = Builder(whole.slots[id(loss_output(trace))].like.device)
    behind = zip(trace.outputs, trace.loss_inputs, strict=True)
    pairs = [(v, seen) for v, seen in behind if v is not None and seen is not None] + [(v, v) for v in trace.reads]
    slots: list[Slot] = []
    for v, seen in pairs:
        at = whole.slots[id(v)].index
        assert seen.gradient == whole.active[at]
        slots.append(builder.give(seen, moving=whole.moving[at]))
    slots += [builder.give(v) for v in trace.targets]
    places = list(dict.fromkeys(slots))  # one that is handed twice is one
    moves = [builder.moving[s.index] for s in places]
    given = Given(
        [s for s, m in zip(places, moves, strict=True) if not m], [s for s, m in zip(places, moves, strict=True) if m]
    )
    out = builder.lower(trace.loss_calls, [loss])
    structure = Structure(pytree.tree_structure(0), (True,))
    return LossPlan(builder.plan(given, out, structure), tuple(places.index(s) for s in slots), tuple(moves))


def loss_output(trace: Trace) -> Value:
    """Some value of a trace's outputs."""
    return next(v for v in trace.outputs if v is not None)


def _check_arguments(rule: Rule, *args: Any, **kwargs: Any) -> None:
    """Raises NotKnown where a call has arguments that its rule has no parameters for.

    Looked at before the rule runs, so that an error inside of it is not taken for one of these.
    """
    try:
        _signature(rule).bind(*args, **kwargs)
    except TypeError as error:
        raise NotKnown(f"called with unusual arguments ({error})") from error


def _check_results(call: Call, out: Sequence[Slot]) -> None:
    """Raises NotKnown where a rule gives another shape or dtype than PyTorch does, as of numbers of several dtypes."""
    for value, slot in zip(call.made, out, strict=False):
        if value is not None and (value.like.shape, value.like.dtype) != (slot.like.shape, slot.like.dtype):
            raise NotKnown(f"of {slot.like.dtype} values of shape {list(slot.shape)}")


@functools.cache  # there are only as many rules as lowering/tables.py has
def _signature(rule: Rule) -> inspect.Signature:
    return inspect.signature(rule)


def _one_task(inputs: Sequence[Slot], device: torch.device | None) -> list[Tensor]:
    """Empty tensors of one task's values [1, ...], on `device` or each on its own."""
    return [torch.empty((1, *s.shape), dtype=s.like.dtype, device=device or s.like.device) for s in inputs]


def _has_derivative(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()
