"""What fastmeta takes from the inside of PyTorch: the one place that a new release of torch can break.

Everything here is private to torch, or documented as a prototype; the rest of the package imports it from here.
Tested with torch 2.11 and the newest release.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily as without_fake_tensors
from torch.autograd.function import BackwardCFunction as CustomFunctionNode
from torch.nn.utils.stateless import _reparametrize_module as reparametrized
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# pytree: trees of tensors as torch.func and torch.export see them.
# FakeTensorMode, FakeTensor: tensors without data, so that a module can be run for its shapes alone;
#   without_fake_tensors: back to real ones for a moment.
# CustomFunctionNode: what a user's autograd.Function leaves in the graph.
# reparametrized: what functional_call puts tensors into a module with, as a context that a loss can stand in too.
# TorchDispatchMode: sees every operator below autograd, which tells whether a call draws random numbers.

__all__ = [
    "CALL_OF_MODULES", "CustomFunctionNode", "FakeTensor", "FakeTensorMode", "TorchDispatchMode",
    "no_torch_function_checks", "pytree", "quiet_fake_tensors", "reparametrized", "storage_of", "without_fake_tensors",
]  # fmt: skip

CALL_OF_MODULES = nn.Module._call_impl.__code__
"""The frame in which a module's `forward` runs, with the module as `self`."""

_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


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
