"""The random numbers that a plan draws, for a plain run of the module: what both compute is then the same function."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmeta.internals import no_torch_function_checks
from fastmeta.ops.dropout import Dropout, step_keys
from fastmeta.ops.opaque import seed_of

_DROPOUT = inspect.signature(F.dropout)


class SameDraws(TorchFunctionMode):
    """One task's run of a module by PyTorch, with the masks and seeds of its plan.

    A plan numbers the calls that draw, in the order of the forward: so does this. The keys of an inner step hold until
    `next_step`, which follows each inner loss.

    Args:
        keys: the task's random key [1].
        by_step: whether steps have keys of their own; a pass of outputs alone takes `keys` as they are.
        without: leave dropout out; other calls draw what they will.
    """

    def __init__(self, keys: Tensor, *, by_step: bool, without: bool = False) -> None:
        super().__init__()
        self._keys, self._by_step, self._without = keys, by_step, without
        self._step, self._layer = 0, 0
        device = keys.device
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])
        self._inside: list[Any] = []  # Python functions of PyTorch's that are being looked into

    def next_step(self) -> None:
        """The forward to come is that of the next inner step, or of the query set."""
        self._step, self._layer = self._step + 1, 0

    @property
    def _now(self) -> Tensor:
        return step_keys(self._keys, self._step) if self._by_step else self._keys

    def __torch_function__(self, func: Any, types_: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if self._without:
            return func(*args, **kwargs)
        inside = self._inside_of(func)
        if inside is not None:
            self._inside.append(func)
            try:
                with self:
                    return inside(*args, **kwargs)
            finally:
                self._inside.remove(func)
        # the generators themselves: torch.manual_seed would note its caller for each that is not there yet
        seed = seed_of(int(self._now), self._layer)
        for generator in self._generators:
            generator.manual_seed(seed)
        before = [generator.get_state() for generator in self._generators]
        out = func(*args, **kwargs)
        after = [generator.get_state() for generator in self._generators]
        self._layer += not all(map(torch.equal, before, after))  # it has drawn
        return out

    def _inside_of(self, func: Any) -> Callable[..., Any] | None:
        """A function of `torch.nn.functional` whose own calls a plan sees."""
        known = isinstance(func, types.FunctionType) and func.__module__ == F.__name__ and func not in self._inside
        return no_torch_function_checks(func) if known else None

    def _dropout(self, *args: Any, **kwargs: Any) -> Tensor:
        given = _DROPOUT.bind(*args, **kwargs)
        given.apply_defaults()
        x, p, training, inplace = given.args
        if not training or p == 0 or self._without:
            return x
        _, mask = Dropout(p, self._layer).forward(x.unsqueeze(0), self._now)
        self._layer += 1
        return x.mul_(mask[0]) if inplace else x * mask[0]


def stepping(loss: Callable[[Any, Any], Tensor], draws: SameDraws) -> Callable[[Any, Any], Tensor]:
    """An inner loss that says when a step is over."""

    def run(outputs: Any, targets: Any) -> Tensor:
        value = loss(outputs, targets)
        draws.next_step()
        return value

    return run
