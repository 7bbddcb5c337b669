"""A user's module, called under other weights than its own: it is afterwards as it was.

What `torch.func.functional_call` does for the forward holds here for the loss and the inner gradient too, so that a
loss which reads `module.parameters()` or what forward left in an attribute sees the fast weights; and whatever forward
writes, buffers, attributes, lists or dicts in them, is put back. Every call starts from the user's own state.
"""

from __future__ import annotations

import inspect
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fastmeta.inner_step import inner_step_at, reads_inner_step
from fastmeta.internals import (
    WeightNormHook,
    WeightNormParametrization,
    checkpointing_off,
    pytree,
    weight_norm_op,
)

TURN = threading.RLock()
"""Held while a module holds other tensors than its own: nobody else may run it then, or look at it."""

_NUMBERS = (bool, int, float, str)
_HOLD_NOTHING = frozenset({*_NUMBERS, type(None), Tensor, nn.Parameter})
_MOST = 1000  # entries of a list or dict that is looked after: a vocabulary is none that forward writes


class Stateless:
    """A module, and the losses that go with it, whose weights can be exchanged for the time of a `with`.

    Args:
        module: the user's.
        losses: those that are modules are put back as `module` is; their parameters stay their own.

    Raises:
        RuntimeError: the module is scripted, or a `DataParallel`, which hold their weights elsewhere.
    """

    def __init__(self, module: nn.Module, *losses: Any) -> None:
        if isinstance(module, torch.jit.ScriptModule | nn.DataParallel):
            raise RuntimeError(
                f"model must hold its weights where Python can exchange them, and a {type(module).__name__} does not; "
                "pass the plain module"
            )
        self.module = module
        roots = [module, *(loss for loss in losses if isinstance(loss, nn.Module) and loss is not module)]
        modules = list(dict.fromkeys(m for root in roots for m in root.modules()))
        places: dict[int, list[tuple[Any, str]]] = {}  # where a parameter stands: a dict and a key in it
        for m in modules:
            for key, p in m._parameters.items():
                if p is not None:
                    places.setdefault(id(p), []).append((m._parameters, key))
        named = module.named_parameters(remove_duplicate=False)
        self._places = {name: places[id(p)] for name, p in named}
        self._state = State(modules)
        self._steps = [
            (m._buffers, key, x)
            for m in module.modules()
            for key, x in m._buffers.items()
            if x is not None and reads_inner_step(key, x)
        ]
        self._step: int | None = None
        self._recurrent = any(isinstance(m, nn.RNNBase) and next(m.parameters()).is_cuda for m in modules)
        self._weight_norm = any(map(_has_weight_norm, modules))
        renormed = [m for m in modules if m._parameters and getattr(m, "max_norm", None) is not None]
        self._renormed: list[tuple[Any, str, Tensor]] = [
            (m._parameters, key, p) for m in renormed for key, p in m._parameters.items() if p is not None
        ]

    def own(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies where forward writes into weights: an embedding with `max_norm` scales its rows in place."""
        return {name: p.clone() for name, p in weights.items()} if self._renormed else weights

    def under(self, weights: Mapping[str, Tensor], *, step: int | None = None) -> _Under:
        """A context: the module holds `weights` by name, each as often as it is tied, and copies of its buffers; where
        it reads in which inner step it is, it reads `step`."""
        return _Under(self, weights, step)

    def _hold(self, weights: Mapping[str, Tensor], step: int | None) -> None:
        self._step = step
        self._exchange()
        for contents, key, p in self._renormed:
            contents[key] = p.clone()  # of those that do not move: forward writes into them
        for name, value in weights.items():
            for contents, key in self._places[name]:
                contents[key] = value

    def _exchange(self) -> None:
        self._state.exchange()
        if self._step is not None:
            for holder, key, x in self._steps:
                holder[key] = inner_step_at(x, self._step)

    @contextmanager
    def running(self, *, twice: bool) -> Iterator[None]:
        """What must hold around calls, once for many of them, for their results to be differentiated later.

        Args:
            twice: and again; cuDNN's recurrent layers cannot be, so that others run in their place.
        """
        with (
            TURN,
            checkpointing_off(),
            sdpa_kernel(SDPBackend.MATH),  # the only attention that can be differentiated twice
            torch.backends.cudnn.flags(enabled=False) if twice and self._recurrent else nullcontext(),
            _WeightNormWrittenOut() if self._weight_norm else nullcontext(),
        ):
            yield

    def __call__(self, x: Any, *, support_x: Any = None) -> Any:
        """The module's output: a tuple or list holds positional arguments, a dict keyword arguments.

        With a support set, batch norms that use their batch's statistics take those of their calls on it.
        """
        if support_x is not None:
            statistics = SupportStatistics()
            with statistics.recorded():
                self(support_x)
            self._exchange()  # the query pass too starts from the user's buffers
            with statistics.replayed():
                return self(x)
        if isinstance(x, dict):
            return self.module(**x)
        return self.module(*x) if isinstance(x, tuple | list) else self.module(x)


class _Under:
    """What `Stateless.under` gives. Entered for every step of every task, so that it is no generator."""

    __slots__ = ("_call", "_step", "_weights")

    def __init__(self, call: Stateless, weights: Mapping[str, Tensor], step: int | None) -> None:
        self._call, self._weights, self._step = call, weights, step

    def __enter__(self) -> None:
        self._call._hold(self._weights, self._step)

    def __exit__(self, *_: object) -> None:
        self._call._state.restore()


def stacked(outputs: Sequence[Any]) -> Any:
    """Trees of the tasks' outputs as one tree of tensors [T, ...]; a tuple of T tensors where their shapes differ.

    Raises:
        TypeError: an output is neither a tensor nor None.
    """

    def stack(*leaves: Any) -> Any:
        for leaf in leaves:
            if leaf is not None and not isinstance(leaf, Tensor):
                raise TypeError(
                    f"model must return tensors, or tuples or dicts of them, got a {type(leaf).__name__}; return its "
                    "tensors in a tuple or dict"
                )
        if leaves[0] is None:
            return None
        return torch.stack(leaves) if len({leaf.shape for leaf in leaves}) == 1 else leaves

    if isinstance(outputs[0], Tensor):
        return stack(*outputs)
    return pytree.tree_map(stack, *outputs)


def one_behind_another(outputs: Sequence[Any]) -> Any:
    """Outputs of several slices of a task's samples as those of all of them."""

    def join(*ys: Any) -> Any:
        if not isinstance(ys[0], Tensor):
            return ys[0]
        return torch.cat(ys) if ys[0].dim() else torch.stack(ys)

    return pytree.tree_map(join, *outputs)


class State:
    """All that forward could write in some modules, as it was, but for their parameters' values."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._copied: list[tuple[dict[str, Any], str, Tensor]] = []  # where copies of tensors go
        self._filled: list[tuple[Callable[[Any], None], Any]] = []  # how to put back what a container held
        self._held: list[tuple[dict[str, Any], dict[str, Any]]] = []  # dicts, and what was in them
        self._empty: list[Any] = []
        self._seen: set[int] = set()
        for m in modules:
            contents = vars(m)
            self._remember(contents)
            self._copied += [
                (holder, key, x)
                for holder in (contents, m._buffers)
                for key, x in holder.items()
                if isinstance(x, Tensor) and not x.requires_grad
            ]

    def _remember(self, value: Any) -> None:
        """A container and those in it; of other objects, namespaces and dataclasses."""
        if id(value) in self._seen:
            return
        kind = type(value)
        if kind in (dict, OrderedDict, defaultdict):
            inside = value.values()
        elif kind in (list, tuple, set, deque):
            inside = value
        elif kind is types.SimpleNamespace or (is_dataclass(kind) and hasattr(value, "__dict__")):
            self._remember(vars(value))
            return
        else:
            return
        self._seen.add(id(value))
        if kind is not tuple:
            if not value:
                self._empty.append(value)
                return
            if len(value) > _MOST:
                return
            before = value.copy()
            self._filled.append((_RESTORES[kind](value), before))
            if isinstance(value, dict):
                self._held.append((value, before))
        for x in inside:
            if type(x) is OrderedDict and not x:  # of a module, most are
                self._empty.append(x)
            elif type(x) not in _HOLD_NOTHING:
                self._remember(x)

    def exchange(self) -> None:
        """Copies of buffers and of plain tensors, for forward to write into; one tensor has one copy."""
        copies: dict[int, Tensor] = {}
        for holder, key, x in self._copied:
            if id(x) not in copies:
                copies[id(x)] = x.clone()
            holder[key] = copies[id(x)]

    def history(self) -> str:
        """The name of an attribute that a forward left with another number or text than it had: a counter, a flag."""
        for holder, before in self._held:
            for name, value in holder.items():
                old = before.get(name)
                if value is not old and type(value) in _NUMBERS and (type(value), value) != (type(old), old):
                    return str(name)
        return ""

    def restore(self) -> None:
        """All is as it was."""
        for put_back, held in self._filled:
            put_back(held)
        if any(self._empty):
            for value in self._empty:
                value.clear()


def _of_dict(value: dict[Any, Any]) -> Callable[[Any], None]:
    def put_back(held: dict[Any, Any]) -> None:
        value.update(held)
        if len(value) != len(held):
            value.clear()
            value.update(held)

    return put_back


def _of_list(value: list[Any]) -> Callable[[Any], None]:
    def put_back(held: list[Any]) -> None:
        value[:] = held

    return put_back


def _of_set(value: Any) -> Callable[[Any], None]:
    def put_back(held: Any) -> None:
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(held)

    return put_back


_RESTORES: dict[type, Callable[[Any], Callable[[Any], None]]] = {
    dict: _of_dict, OrderedDict: _of_dict, defaultdict: _of_dict, list: _of_list, set: _of_set, deque: _of_set,
}  # fmt: skip


def _has_weight_norm(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, WeightNormParametrization) or any(isinstance(hook, WeightNormHook) for hook in hooks)


class _WeightNormWrittenOut(TorchFunctionMode):
    """g v / ‖v‖ in place of torch._weight_norm, whose derivative PyTorch cannot differentiate again: 4 % off."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is weight_norm_op:
            return written_out_weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def written_out_weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / ‖v‖ with a norm for each index of `dim`; -1: one for all."""
    dims = [i for i in range(v.dim()) if dim == -1 or i != dim % v.dim()]
    return v * (g / v.square().sum(dims, keepdim=True).sqrt()) if dims else v * (g / v.abs())


# bn_statistics="support": every batch norm, nn.BatchNorm* and functional, passes through F.batch_norm, which
# a mode intercepts without touching the module.

_BATCH_NORM = inspect.signature(F.batch_norm)
Normalise = Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor]  # (x, weight, bias, eps) → y


class _BatchNormMode(TorchFunctionMode):
    """Hands the calls of F.batch_norm that use the statistics of their batch to `normalise`."""

    def __init__(self, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            call = _BATCH_NORM.bind(*args, **(kwargs or {})).arguments
            if call.get("training"):
                return self.normalise(call["input"], call.get("weight"), call.get("bias"), call.get("eps", 1e-5))
        return func(*args, **(kwargs or {}))


class SupportStatistics:
    """Mean and variance of each batch-norm call on the support set, for the same calls on the query set."""

    def __init__(self) -> None:
        self._found: deque[tuple[Tensor, Tensor]] = deque()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While the module runs on the support set."""

        def record(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            dims = [0, *range(2, x.dim())]
            self._found.append((wide.mean(dims, keepdim=True), wide.var(dims, correction=0, keepdim=True)))
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)

        with _BatchNormMode(record):
            yield

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """While it runs on the query set.

        Raises:
            RuntimeError: it makes another number of batch-norm calls there.
        """
        uneven = (
            'bn_statistics="support" needs a module that makes the same batch-norm calls on the query as on the '
            'support set, got a different number; use bn_statistics="batch"'
        )

        def replay(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
            if not self._found:
                raise RuntimeError(uneven)
            mean, var = self._found.popleft()
            per_channel = [1, -1, *[1] * (x.dim() - 2)]
            y = (x - mean) * (var + eps).rsqrt()
            if weight is not None:
                y = y * weight.view(per_channel)
            if bias is not None:
                y = y + bias.view(per_channel)
            return y.to(x.dtype)

        with _BatchNormMode(replay):
            yield
        if self._found:
            raise RuntimeError(uneven)
