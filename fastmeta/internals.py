"""What fastmeta takes from the inside of PyTorch: the one place that a new release of torch can break.

Everything here is private to torch, or documented as a prototype; the rest of the package imports it from here.
Tested with torch 2.11 and the newest release.
"""

from __future__ import annotations

import logging
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch._compile import _disable_dynamo as not_compiled
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as without_fake_tensors
from torch.autograd.function import BackwardCFunction as CustomFunctionNode
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.nn.utils.parametrizations import _WeightNorm as WeightNormParametrization
from torch.nn.utils.stateless import _reparametrize_module as reparametrized
from torch.nn.utils.weight_norm import WeightNorm as WeightNormHook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# pytree: trees of tensors as torch.func and torch.export see them.
# FakeTensorMode, FakeTensor: tensors without data, so that a module can be run for its shapes alone;
#   without_fake_tensors: back to real ones for a moment.
# CustomFunctionNode: what a user's autograd.Function leaves in the graph.
# reparametrized: what functional_call puts tensors into a module with, as a context that a loss can stand in too.
# TorchDispatchMode: sees every operator below autograd, which tells whether a call draws random numbers.
# not_compiled: what torch.compile does not look into; torch.compiler.disable would import the compiler at once.
# make_fx, get_proxy_mode: a function's operators as a flat graph, and whether one is being made.
# WeightNormParametrization, WeightNormHook: who calls torch._weight_norm, whose second derivative is wrong.

__all__ = [
    "CALL_OF_MODULES", "CustomFunctionNode", "FakeTensor", "FakeTensorMode", "TorchDispatchMode", "WeightNormHook",
    "WeightNormParametrization", "accumulators_kept", "add_all", "assert_on_device", "checkpointing_off", "copy_all",
    "cuda_driver_version", "get_proxy_mode", "holders", "hooked_call", "inductor", "make_dual", "make_fx",
    "no_torch_function_checks", "not_compiled", "pytree", "quiet_fake_tensors", "reparametrized", "storage_of",
    "weight_norm_op", "without_fake_tensors", "writes_to",
]  # fmt: skip

CALL_OF_MODULES = nn.Module._call_impl.__code__
"""The frame in which a module's `forward` runs, with the module as `self`."""

_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


make_dual = torch._make_dual  # pyright: ignore[reportPrivateImportUsage]  # forward mode begins


def writes_to(tensor: Tensor) -> int:
    """How often a tensor's memory was written in place."""
    return tensor._version


def cuda_driver_version() -> int | None:
    """Of CUDA that the driver has, 12080 for 12.8; None where there is no driver."""
    try:
        return int(torch._C._cuda_getDriverVersion())  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, RuntimeError):  # PyTorch for CPUs
        return None


def assert_on_device(condition: Tensor, message: str) -> None:
    """A check that no host waits for."""
    torch.ops.aten._assert_async.msg(condition, message)


def copy_all(into: list[Tensor], data: list[Tensor]) -> None:
    """Many tensors in one launch."""
    torch._foreach_copy_(into, data)  # pyright: ignore[reportPrivateImportUsage]


def add_all(into: list[Tensor], data: list[Tensor]) -> None:
    """Many sums in place, in one launch."""
    torch._foreach_add_(into, data)  # pyright: ignore[reportPrivateImportUsage]


def holders(row: Tensor, views: Sequence[Tensor]) -> tuple[int, ...]:
    """How many hold the memory of a row and each of its views, in Python and behind it: numbers that grow where
    somebody else takes hold of any of it, by a view of a view or an array too."""
    memory = row.untyped_storage()
    of_memory = torch._C._storage_Use_Count(memory._cdata)  # pyright: ignore[reportAttributeAccessIssue]
    counts = [sys.getrefcount(memory), of_memory]
    for view in views:
        counts += sys.getrefcount(view), view._use_count()  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(counts)


def hooked_call(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks beside its `forward`."""
    mine = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(mine or nn.modules.module._has_any_global_hook())


_MARK = "fastmeta"


def accumulators_kept(leaves: list[Tensor]) -> bool:
    """Whether anybody holds one of the nodes by which autograd adds to the leaves' `.grad`.

    Such a node is made when it is asked for and dies with the last who holds it, so that whoever hangs a hook on it,
    as DistributedDataParallel does, keeps it. Its hooks cannot be seen, but whether it outlives this call can be. What
    gives all nodes in the least time is one behind them that is never called. Gradients must be enabled.
    """
    mark = _Mark()
    alone = sys.getrefcount(mark)
    error = torch._C._functions.DelayedError("never called", len(leaves) + 1)  # pyright: ignore[reportAttributeAccessIssue]
    last = error(*leaves, leaves[0])  # of one tensor there would be no tuple
    nodes = last[0].grad_fn.next_functions
    for node, _ in nodes:
        node.metadata[_MARK] = mark
    del last, nodes, node
    return sys.getrefcount(mark) > alone


class _Mark:
    """What the nodes hold while they live."""


def inductor(graph: fx.GraphModule, inputs: list[Any], options: dict[str, Any]) -> Callable[..., Any]:
    """The compiled code of a graph."""
    from torch._inductor.compile_fx import compile_fx  # the compiler's own imports take seconds

    return compile_fx(graph, inputs, config_patches=options)  # pyright: ignore[reportReturnType]


def storage_of(tensor: Tensor) -> int:
    """The same for tensors that share memory, and for no others while they live."""
    return tensor.untyped_storage()._cdata


def no_torch_function_checks(function: types.FunctionType) -> Callable[..., Any] | None:
    """A Python function of PyTorch's that does not hand itself to `__torch_function__`, so that what it calls is seen.

    It is a copy that finds its checks answered with no. None: it has none.
    """
    if not set(_CHECKS) & set(function.__code__.co_names):
        return None
    names = {**function.__globals__, **dict.fromkeys(_CHECKS, lambda *_: False)}
    inside = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    inside.__kwdefaults__ = function.__kwdefaults__
    return inside


@contextmanager
def quiet_fake_tensors() -> Iterator[None]:
    """Without the log that tensors without data keep of errors that are then raised as well."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addFilter(_nothing)
    try:
        yield
    finally:
        log.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False


weight_norm_op = torch._weight_norm  # pyright: ignore[reportPrivateImportUsage]

# Who holds the two functions by which torch.utils.checkpoint computes again; the second only where it was imported.
_HOLDERS = ("torch.utils.checkpoint", "torch.distributed._composable.checkpoint_activation")
_RECOMPUTES = torch.utils.checkpoint._checkpoint_without_reentrant_generator  # use_reentrant=False
_REENTRANT = torch.utils.checkpoint.CheckpointFunction  # use_reentrant=True


@contextmanager
def checkpointing_off() -> Iterator[None]:
    """In this thread `torch.utils.checkpoint` calls its function, and computes nothing again in a backward.

    It would compute with what the module holds by then, which is θ and no longer the fast weights. One thread at a time
    may stand in this context; nothing stays behind it.
    """
    mine = threading.get_ident()

    def without(*args: Any, **kwargs: Any) -> Iterator[None]:
        return _passes() if threading.get_ident() == mine else _RECOMPUTES(*args, **kwargs)

    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args) if threading.get_ident() == mine else _REENTRANT.apply(function, preserve, *args)

    new = {"_checkpoint_without_reentrant_generator": without, "CheckpointFunction": types.SimpleNamespace(apply=apply)}
    before = [
        (holder, name, getattr(holder, name))
        for holder in (sys.modules.get(module) for module in _HOLDERS)
        for name in new
        if hasattr(holder, name)
    ]
    for holder, name, _ in before:
        setattr(holder, name, new[name])
    try:
        yield
    finally:
        for holder, name, was in before:
            setattr(holder, name, was)


def _passes() -> Iterator[None]:
    yield
