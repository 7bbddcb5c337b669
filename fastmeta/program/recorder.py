"""Runs user code on tensors without data and notes every call of a PyTorch function.

The code sees tensors, not stand-ins: `isinstance`, `is None`, optional arguments, loops on shapes, `self.parameters()`
and grad mode do what they do in any other run. What a straight line of calls cannot say raises `Untraceable`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastmeta.internals import (
    CALL_OF_MODULES,
    CustomFunctionNode,
    FakeTensor,
    TorchDispatchMode,
    make_dual,
    no_torch_function_checks,
    pytree,
    storage_of,
    without_fake_tensors,
    writes_to,
)

from .messages import first_line
from .trace import Call, Untraceable, Value
from .writes import Storages

_T: Any = torch.Tensor

# What a plan has no place for, and the words for it.
_REFUSED: dict[Any, str] = {
    torch.autograd.grad: "calls torch.autograd.grad",
    torch.autograd.backward: "calls torch.autograd.backward",
    _T.backward: "calls .backward()",
    _T.register_hook: "registers a hook on a tensor",
    _T.register_post_accumulate_grad_hook: "registers a hook on a tensor",
    _T.retain_grad: "keeps the gradient of a tensor inside (retain_grad)",
    _T.requires_grad_: "sets requires_grad of a tensor inside",
    _T.requires_grad.__set__: "sets requires_grad of a tensor inside",
    _T.data.__set__: "replaces the data of a tensor",
    _T.grad.__get__: "reads .grad",
    _T.set_: "replaces the storage of a tensor",
    make_dual: "computes derivatives in forward mode",
}
_READS_DATA: dict[Any, Callable[[Tensor], Any]] = {
    _T.item: lambda x: x.item(), _T.tolist: lambda x: x.tolist(), _T.__bool__: bool, _T.__int__: int,
    _T.__float__: float, _T.__index__: lambda x: x.__index__(), _T.numpy: lambda x: x.numpy(),
}  # fmt: skip
# Their result depends on the shape of the one tensor that they are given, and on nothing else of it.
_SHAPED = (
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
    *(_T.new_zeros, _T.new_ones, _T.new_full, _T.new_empty, _T.new_tensor),
)
_RNNS = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})  # pyright: ignore[reportAttributeAccessIssue]


class _Read(NamedTuple):
    """The arguments of a call: its leaves, with values for tensors, and their structure."""

    leaves: list[Any]
    values: list[Any]
    spec: pytree.TreeSpec


class Draws(TorchDispatchMode):
    """Notes whether any operation inside draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.any |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


class Recorder(TorchFunctionMode):
    """Notes calls while it is entered, inside of a FakeTensorMode.

    Args:
        module: whose submodules' names stand for their calls.
        known: functions of Python's that are noted as they are; any other is looked into.
        replaced: functions in whose place others are called.
    """

    def __init__(self, module: nn.Module, known: Mapping[Any, Any], replaced: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._known, self._replaced = known, replaced
        self._paths = {id(m): path for path, m in module.named_modules()}
        self._values: dict[int, Value] = {}
        self._tensors: list[Tensor] = []  # an id means a tensor for as long as that lives
        self._storages = Storages(self)
        self._parameters: set[int] = set()  # the memories of trainable ones
        self.failed = ""  # the call that raised last
        self._inside: list[Any] = []  # Python functions that are being looked into

    def give_parameter(self, tensor: Tensor) -> Value:
        """A trainable parameter, which no forward may write into: the inner step would not see it."""
        self._parameters.add(storage_of(tensor))
        return self.give(tensor)

    def give(self, tensor: Tensor, *, stored: Tensor | None = None, fresh: bool = False) -> Value:
        """A value that is there before the next call."""
        value = Value(tensor, tensor.requires_grad, stored, fresh)
        self._put(tensor, value)
        return value

    def _put(self, tensor: Tensor, value: Value) -> None:
        if id(tensor) not in self._values:
            self._tensors.append(tensor)
        self._values[id(tensor)] = value
        if isinstance(tensor, FakeTensor):
            self._storages.saw(tensor)

    def known(self, tensor: Tensor) -> Value | None:
        """What was noted of a tensor last, before any write through another view of it."""
        return self._values.get(id(tensor))

    def value(self, tensor: Tensor) -> Value:
        """What a tensor is now.

        Raises:
            Untraceable: nobody saw where it comes from, or autograd knows more of it than was seen.
        """
        value = self._values.get(id(tensor))
        if value is None and not isinstance(tensor, FakeTensor) and type(tensor) in (Tensor, nn.Parameter, nn.Buffer):
            if tensor.requires_grad:
                raise Untraceable("it reads a tensor that requires grad and is no parameter of the module's")
            return self.give(tensor, stored=tensor)
        if value is None:
            raise Untraceable(f"it makes a {type(tensor).__name__} where no call of PyTorch's shows it")
        if isinstance(tensor, FakeTensor):
            value = self._storages.now(tensor, value)
            if tensor.requires_grad != value.gradient or isinstance(tensor.grad_fn, CustomFunctionNode):
                name = type(tensor.grad_fn).__name__.removesuffix("Backward")
                raise Untraceable(f"it calls the autograd.Function {name}, whose backward is its own")
        return value

    # ----------------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types_: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _REFUSED:
            raise Untraceable(f"it {_REFUSED[func]}")
        if func in self._replaced:
            with self:
                return self._replaced[func](*args, **kwargs)
        if isinstance(func, types.FunctionType) and func not in self._known and func not in self._inside:
            inside = no_torch_function_checks(func)
            if inside is not None:
                return self._look_into(func, inside, args, kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        if func in _READS_DATA and tensors:
            return self._data(func, tensors[0], args, kwargs)
        read = [self.value(x) if isinstance(x, Tensor) else x for x in leaves]  # now: the call may write into them
        before = [writes_to(x) for x in tensors]
        try:
            with Draws() as draws:
                out = func(*args, **kwargs)
        except Exception:
            self.failed = self._label(func)
            raise
        written = [x for x, version in zip(tensors, before, strict=True) if writes_to(x) != version]
        out_leaves = pytree.tree_leaves(out)
        made = [x for x in out_leaves if isinstance(x, Tensor)]
        if not written and all(id(x) in self._values or any(x is y for y in tensors) for x in made):
            return out  # a size, a flag, the very tensor that was given
        self._note(func, _Read(leaves, read, spec), out_leaves, written, draws.any)
        return out

    def _look_into(self, func: Any, inside: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs a Python function of PyTorch's for the calls that it makes. One that calls itself is noted itself."""
        self._inside.append(func)
        try:
            with self:
                return inside(*args, **kwargs)
        finally:
            self._inside.remove(func)

    def _data(self, func: Any, tensor: Tensor, args: Any, kwargs: Any) -> Any:
        """A number that Python asks of a tensor: known where the run itself made it, the same for every task."""
        value = self.value(tensor)
        if value.fresh and value.stored is not None:
            with without_fake_tensors():
                return _READS_DATA[func](value.stored)
        if not isinstance(tensor, FakeTensor):
            raise Untraceable(f"Python reads the data of a tensor ({func.__name__})")
        return func(*args, **kwargs)  # a FakeTensor knows some numbers; else its own error

    def _note(self, func: Any, given: _Read, out_leaves: list[Any], written: list[Tensor], random: bool) -> None:
        label = self._label(func)
        leaves, read, spec = given
        self._check(func, label, leaves, out_leaves, written)
        made = [*(x if isinstance(x, Tensor) else None for x in out_leaves), *written]
        places = tuple(i for w in written for i, x in enumerate(leaves) if x is w)
        if len(places) != len(written):
            raise Untraceable(f"{label} is given one tensor twice and writes into it")
        args, kwargs = pytree.tree_unflatten(read, spec)
        if func == _T.data.__get__:
            func = _T.detach
        stored = self._same_for_all(func, read, spec, places, random)
        new = [
            None if x is None else Value(x, x.requires_grad, stored[i] if stored else None, stored is not None)
            for i, x in enumerate(made)
        ]
        self.calls.append(Call(func, args, kwargs, new, places, random, label))
        for x, value in zip(made, new, strict=True):
            if x is not None and value is not None and not any(x is w for w in written):
                self._put(x, value)
        for x, value in zip(written, new[len(out_leaves) :], strict=True):
            assert value is not None
            self._values[id(x)] = value
            self._storages.wrote(x, value)

    def _check(self, func: Any, label: str, leaves: list[Any], out_leaves: list[Any], written: list[Tensor]) -> None:
        """Raises Untraceable for calls that a plan has no place for."""
        if func in _RNNS:
            raise Untraceable(f"{label} runs {func.__name__}, which PyTorch cannot map over tasks")
        device = next((x.device.type for x in out_leaves if isinstance(x, Tensor)), "cpu")
        if torch.is_autocast_enabled(device):
            raise Untraceable(f"{label} runs under autocast")
        if any(isinstance(x, torch.Generator) for x in leaves):
            raise Untraceable(f"{label} draws from a generator of its own, whose state every run moves on")
        into = leaves[0] if leaves and _writes_by_name(func) else None
        if any(not isinstance(x, FakeTensor) for x in (*written, into) if isinstance(x, Tensor)):
            raise Untraceable(f"{label} writes into a tensor that is no buffer of the module's")
        if any(storage_of(x) in self._parameters for x in written):
            raise Untraceable(f"{label} writes into a parameter")
        if not torch.is_grad_enabled() and any(x.requires_grad for x in written):
            raise Untraceable(f"{label} writes under no_grad into a tensor that has a gradient, which stays as it was")

    def record(self, function: Callable[..., Tensor], args: tuple[Any, ...], like: Tensor, *, gradient: bool) -> Value:
        """Notes a call of our own, whose result looks like `like`."""
        value = Value(like, gradient)
        self.calls.append(Call(function, args, {}, [value], (), False, getattr(function, "__name__", "")))
        return value

    def _same_for_all(
        self, func: Any, leaves: list[Any], spec: pytree.TreeSpec, places: tuple[int, ...], random: bool
    ) -> list[Tensor | None] | None:
        """The data of what a call makes, where all that it reads was made by the run itself."""
        values = [x for x in leaves if isinstance(x, Value)]
        if random or any(v.gradient for v in values):
            return None
        shaped = func in _SHAPED and len(values) == 1
        if not shaped and not all(v.fresh for v in values):
            return None
        with without_fake_tensors(), torch.no_grad():
            if shaped:
                real = [_empty_like(x.like) if isinstance(x, Value) else x for x in leaves]
            else:
                real = [x.stored if isinstance(x, Value) else x for x in leaves]
            for i in places:
                real[i] = real[i].clone()  # pyright: ignore[reportOptionalMemberAccess]  # what is written is a tensor
            args, kwargs = pytree.tree_unflatten(real, spec)
            out = pytree.tree_leaves(func(*args, **kwargs))
        return [*(x if isinstance(x, Tensor) else None for x in out), *(real[i] for i in places)]

    def _label(self, func: Any) -> str:
        """The path of the PyTorch module that calls, or the name of the function that a user's module calls."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code is CALL_OF_MODULES:
                module = frame.f_locals["self"]
                if type(module).__module__.startswith("torch.nn"):
                    return self._paths.get(id(module), type(module).__name__) or type(module).__name__
                break
            frame = frame.f_back
        return getattr(func, "__name__", str(func))


def _writes_by_name(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def reason_of(error: BaseException, call: str) -> str:
    """Why a run on tensors without data ended, perhaps in a call, in words for explain()."""
    name = type(error).__name__
    if name in ("DataDependentOutputException", "DynamicOutputShapeException", "GuardOnDataDependentSymNode"):
        return f"what it does depends on the data ({str(error).removeprefix('aten.')})"
    return f"it does not run on tensors without data: {f'{call}: ' if call else ''}{first_line(error)}"


def hooked(module: nn.Module) -> str:
    """What of a module has a hook that a plan would not call; PyTorch's own, of weight_norm and the like, run."""
    for name, p in module.named_parameters():
        if p._backward_hooks:
            return f"the parameter {name}"
    for name, m in module.named_modules():
        before = [*m._forward_pre_hooks.values(), *m._forward_hooks.values()]
        if m._backward_hooks or m._backward_pre_hooks or any(not _own(hook) for hook in before):
            return name or type(m).__name__
    return ""


def _own(hook: Any) -> bool:
    # code that runs by exec() has no module's name
    return (getattr(hook, "__module__", type(hook).__module__) or "").startswith("torch.nn.utils.")
