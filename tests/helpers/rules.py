"""A rule of lowering as one op, so that what it emits is held against PyTorch's own function in all four sweeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from op_harness import as_tuple, check_op
from torch import Tensor

from fastmeta.ops.base import Op, total
from fastmeta.program.lowering import Slot


class Sketch:
    """What a rule is given as `to`: it keeps the ops, with the slots that they read and write."""

    def __init__(self, rows: int | None = None) -> None:
        self.rows, self.count, self.layers = rows, 0, 0
        self.nodes: list[tuple[Op, tuple[int, ...], int]] = []
        self.stored: dict[int, Tensor] = {}

    def slot(self, like: Tensor) -> Slot:
        self.count += 1
        return Slot(self.count - 1, like)

    def emit(self, op: Op, *inputs: Slot) -> Slot:
        y, _ = op.forward(*(torch.zeros(1, *s.shape, dtype=s.like.dtype) for s in inputs))
        assert y.shape[0] == 1
        out = self.slot(y[0])
        self.nodes.append((op, tuple(s.index for s in inputs), out.index))
        return out

    def constant(self, value: Tensor) -> Slot:
        slot = self.slot(value)
        self.stored[slot.index] = value
        return slot

    def next_layer(self) -> int:
        self.layers += 1
        return self.layers - 1


class Composed(Op):
    """The ops that a rule emitted for inputs like those given; sweeps as a plan's."""

    def __init__(self, rule: Callable[..., Any], *inputs: Tensor, rows: int | None = None) -> None:
        to = Sketch(rows)
        slots = [to.slot(x[0]) for x in inputs]
        self.to, self.width = to, len(slots)
        out = rule(to, *slots)
        self.outputs = [s.index for s in as_tuple(out)]

    def forward(self, *inputs):
        env = dict(enumerate(inputs))
        env |= {i: v.expand(inputs[0].shape[0], *v.shape) for i, v in self.to.stored.items()}
        tape = []
        for op, ins, out in self.to.nodes:
            env[out], saved = op.forward(*(env[i] for i in ins))
            tape.append(saved)
        return self._picked(env), tape

    def _picked(self, env):
        values = tuple(env.get(i) for i in self.outputs)
        return values if len(values) > 1 else values[0]

    def _active(self, first: set[int]) -> set[int]:
        """The slots that depend on one of the first."""
        active = set(first)
        for _, ins, out in self.to.nodes:
            if active & set(ins):
                active.add(out)
        return active

    def backward(self, saved, dy, needs):
        return self._backwards(saved, {}, [None] * len(saved), as_tuple(dy), needs)[0]

    def forward_dot(self, saved, inputs_dot):
        dot = {i: d for i, d in enumerate(inputs_dot) if d is not None}
        tape_dot = []
        for (op, ins, out), kept in zip(self.to.nodes, saved, strict=True):
            dots = tuple(dot.get(i) for i in ins)
            if all(d is None for d in dots):
                tape_dot.append(None)
                continue
            dot[out], kept_dot = op.forward_dot(kept, dots)
            tape_dot.append((kept_dot,))
        return self._picked(dot), tape_dot

    def backward_dot(self, saved, saved_dot, dy, dy_dot, needs):
        cotangents = self._backwards(saved, {}, [None] * len(saved), as_tuple(dy), needs)[1]
        return self._backwards(saved, cotangents, saved_dot, as_tuple(dy_dot), needs)[0]

    def _backwards(self, tape, cotangents, tape_dot, d_outputs, needs):
        active = self._active({i for i, need in enumerate(needs) if need})
        d: dict[int, Tensor] = {}
        for i, value in zip(self.outputs, d_outputs, strict=True):
            d[i] = total(d.get(i), value)
        kept = {}
        for k in range(len(self.to.nodes) - 1, -1, -1):
            op, ins, out = self.to.nodes[k]
            mask = tuple(i in active for i in ins)
            dy = d.pop(out, None)
            if dy is None or not any(mask):
                continue
            kept[k] = dy
            if tape_dot[k] is None:
                terms = op.backward(tape[k], dy, mask)
            else:
                terms = op.backward_dot(tape[k], tape_dot[k][0], cotangents[k], dy, mask)
            for i, need, term in zip(ins, mask, terms, strict=True):
                assert (term is not None) == need, f"{op}: {i}"
                if need:
                    d[i] = total(d.get(i), term)
        return tuple(d.get(i) if need else None for i, need in enumerate(needs)), kept


def check_rule(rule: Callable[..., Any], plain: Callable[..., Any], *inputs: Tensor, rows: int | None = None) -> None:
    """Compares `rule(to, *slots)` with `plain(*tensors)` of one task, inputs [T, ...], as check_op does."""
    op = Composed(rule, *inputs, rows=rows)
    check_op(op, plain, *inputs)
