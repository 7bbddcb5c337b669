"""A module's torch.fx trace, and one run of it on data-free tensors that gives every shape and plain number."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Untraceable(Exception):
    """The module must run as one opaque op; the message says why."""


class Draws(TorchDispatchMode):
    """Notes whether any operation inside draws random numbers, and refuses what PyTorch differentiates wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.any |= torch.Tag.nondeterministic_seeded in func.tags
        if func is torch.ops.aten._weight_norm_interface.default:
            raise ValueError(
                "model calls torch._weight_norm where it cannot be replaced, and PyTorch's second derivative of it is "
                "wrong; use torch.nn.utils.parametrizations.weight_norm in a module that torch.fx can trace, or write "
                "g * v / ||v|| yourself"
            )
        return func(*args, **(kwargs or {}))


class Writes:
    """Notes which tensors of a tree are written into from now on: PyTorch counts the writes to each."""

    def __init__(self, tree: Any) -> None:
        self._tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
        self._before = [x._version for x in self._tensors]

    def found(self) -> list[bool]:
        """For each tensor of the tree whether it was written into."""
        return [x._version != before for x, before in zip(self._tensors, self._before, strict=True)]


class _Recorder(fx.Interpreter):
    """Runs a traced module on data-free tensors and keeps every node's value (all shapes, all plain numbers), which
    nodes draw random numbers, and which write into what they are given."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False
        self.values: dict[fx.Node, Any] = {}
        self.random: set[fx.Node] = set()
        self.writing: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        writes = Writes(self.fetch_args_kwargs_from_env(n))
        with Draws() as draws:
            self.values[n] = value = super().run_node(n)
        if draws.any:
            self.random.add(n)
        if any(writes.found()):
            self.writing.add(n)
        return value


class Recorded(nn.Module):
    """A module's forward under `_Recorder`, so that `functional_call` can put data-free parameters in its place."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.module = module
        self.values: dict[fx.Node, Any] = {}
        self.random: set[fx.Node] = set()
        self.writing: set[fx.Node] = set()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        recorder = _Recorder(self.module)
        placeholders = [n for n in self.module.graph.nodes if n.op == "placeholder"]
        given = list(args)
        for n in placeholders[len(args) :]:
            if n.target in kwargs:
                given.append(kwargs[n.target])
            elif n.args:
                given.append(n.args[0])
            else:
                raise TypeError(f"the module's forward needs an argument {n.target!r} that the inputs do not hold")
        out = recorder.run(*given)
        self.values, self.random, self.writing = recorder.values, recorder.random, recorder.writing
        return out


class _Value(fx.Proxy):
    """fx records `a += b` as `a = a + b`, which forgets that others may hold `a`; here it is recorded as it stands."""


def _record_in_place(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


INPLACE_OPERATORS: tuple[Callable[[Any, Any], Any], ...] = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift,
)  # fmt: skip
for _operator in INPLACE_OPERATORS:
    setattr(_Value, f"__{_operator.__name__}__", _record_in_place(_operator))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_parametrized(m) or type(m).__module__.startswith("torch.nn.utils."):
            return False  # its weight is computed by calls that may have ops of their own
        return super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)


def trace(module: nn.Module) -> fx.GraphModule:
    """The module's trace.

    Raises:
        Untraceable: it draws random numbers. torch.fx raises whatever else it cannot do.
    """
    with warnings.catch_warnings(), Draws() as draws:
        warnings.simplefilter("ignore")  # fx warns of calls it replays, such as a shape check: all are replayed below
        tracer = _Tracer()
        traced = tracer.trace(module)
        graph = fx.GraphModule(tracer.root, traced)
    for node in graph.graph.nodes:
        if node.target is torch._weight_norm:  # pyright: ignore[reportPrivateImportUsage]
            node.target = weight_norm
    graph.recompile()
    if draws.any:
        raise Untraceable("it draws random numbers, which a trace would hold fixed")
    return graph


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """As torch._weight_norm, g v / ||v|| with a norm for each index of `dim`; its second derivative in PyTorch is wrong
    (off by more than its size for a 5×2 weight)."""
    dims = [d for d in range(v.dim()) if dim == -1 or d != dim % v.dim()]
    return v * (g / torch.linalg.vector_norm(v, dim=dims, keepdim=True))


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs a forward hook of the user's."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
