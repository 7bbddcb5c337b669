"""A module's calls as a straight line: what running it once on tensors without data leaves.

A `Value` is a tensor at one moment: what is written in place gets another value, so that calls only ever make values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import is_
from typing import Any

import torch
from torch import Tensor

from fastmeta.internals import pytree


class Untraceable(Exception):
    """The program cannot run on all tasks at once; the message says why."""


@dataclass(eq=False)
class Value:
    """A tensor of one task at one moment of a run.

    `like` has its shape and dtype, and no data. `gradient` is autograd's own word on whether it has one.
    """

    like: Tensor
    gradient: bool
    stored: Tensor | None = None  # its data, where it is the same for all tasks: the user's tensor, or made by a call
    fresh: bool = False  # of stored data: made by the run itself, so that nobody else can change it


@dataclass(eq=False)
class Call:
    """A call of a PyTorch function: trees of arguments with a `Value` for each tensor, and the values it makes.

    `written` are the places among the arguments' leaves that the function writes into. `made` are the leaves of its
    result, then what it wrote; None: not a tensor.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: list[Value | None]
    written: tuple[int, ...]
    random: bool
    label: str

    def values(self) -> list[Value]:
        """Those that it reads."""
        return [x for x in self.flat[0] if isinstance(x, Value)]

    @cached_property
    def flat(self) -> tuple[list[Any], pytree.TreeSpec]:
        """The arguments' leaves and their structure, looked at once: taking trees apart costs more than a small op."""
        return pytree.tree_flatten((self.args, self.kwargs))

    @cached_property
    def _plain(self) -> bool:
        """Whether the leaves are the arguments themselves."""
        leaves, args = self.flat[0], self.args
        return not self.kwargs and len(leaves) == len(args) and all(map(is_, leaves, args))

    @cached_property
    def _smooth(self) -> bool:
        """Whether it reads anything with a gradient."""
        return any(v.gradient for v in self.values())

    def run(self, filled: Sequence[Any]) -> list[Any]:
        """The function on other leaves, which it leaves as they were; what it makes, in the order of `made`."""
        filled = list(filled)
        for i in self.written:
            filled[i] = filled[i].clone()
        args, kwargs = (filled, {}) if self._plain else pytree.tree_unflatten(filled, self.flat[1])
        result = self.function(*args, **kwargs)
        out = [result] if isinstance(result, Tensor) else pytree.tree_leaves(result)
        made = [*out, *(filled[i] for i in self.written)]
        if not self._smooth:
            return made
        # what autograd keeps no graph of has no tangent either; forward mode alone would not know
        return [x.detach() if v is not None and not v.gradient else x for x, v in zip(made, self.made, strict=True)]


@dataclass
class Trace:
    """A module run on one task, and perhaps a loss behind it.

    `calls` with `loss_calls` behind them is the whole run. `reads` are values of the module's run, other than its
    outputs, that the loss reads: parameters, or attributes that the forward has left.
    """

    calls: list[Call]
    outputs: list[Value | None]
    output_spec: pytree.TreeSpec
    loss_inputs: list[Value | None] = field(default_factory=list)  # the outputs, without support samples in front
    loss_calls: list[Call] = field(default_factory=list)
    targets: list[Value] = field(default_factory=list)
    loss: Value | None = None
    reads: list[Value] = field(default_factory=list)


def needed(calls: Sequence[Call], wanted: Sequence[Value | None]) -> list[Call]:
    """The calls that `wanted` values depend on."""
    alive = {id(v) for v in wanted if v is not None}
    kept: list[Call] = []
    for call in reversed(calls):
        if any(v is not None and id(v) in alive for v in call.made):
            alive.update(id(v) for v in call.values())
            kept.append(call)
    return kept[::-1]


def same_calls(some: Sequence[Call], others: Sequence[Call]) -> bool:
    """Whether two runs have called the same functions with the same numbers, whatever tensors without data hold."""

    def alike(a: Any, b: Any) -> bool:
        if not isinstance(a, Value) or not isinstance(b, Value):
            try:
                return a is b or (type(a) is type(b) and bool(a == b))
            except Exception:  # what has no equality is another one
                return False
        data = a.stored, b.stored
        if data[0] is None or data[1] is None or data[0] is data[1]:
            return data[0] is data[1]
        return data[0].shape == data[1].shape and bool(torch.equal(data[0], data[1]))

    def same(a: Call, b: Call) -> bool:
        (leaves, spec), (other_leaves, other_spec) = a.flat, b.flat
        return a.function == b.function and spec == other_spec and all(map(alike, leaves, other_leaves))

    return len(some) == len(others) and all(map(same, some, others))
