"""What fastmeta takes from the inside of PyTorch: the one place that a new release of torch can break.

Everything here is private to torch, or documented as a prototype; the rest of the package imports it from here.
Tested with torch 2.11 and the newest release.
"""

from __future__ import annotations

from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils.stateless import _reparametrize_module as reparametrized
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# pytree: trees of tensors as torch.func and torch.export see them.
# FakeTensorMode, FakeTensor: tensors without data, so that a module can be run for its shapes alone.
# reparametrized: what functional_call puts tensors into a module with, as a context that a loss can stand in too.
# TorchDispatchMode: sees every operator below autograd, which tells whether a call draws random numbers.

__all__ = ["FakeTensor", "FakeTensorMode", "TorchDispatchMode", "pytree", "reparametrized"]
