"""A function of tensors, compiled whole: traced to one flat graph, then `torch.compile(fullgraph=True)`.

Tracing first with make_fx leaves the compiler nothing of Python to understand, so it takes torch.func transforms
and our own classes alike, and a graph break cannot happen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree


class Compiled:
    """`fn` on trees of tensors, compiled once for every set of shapes and strides: a trace holds both.

    Anything else in the trees must not vary.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._graphs: dict[tuple[Any, ...], tuple[Callable[..., Any], pytree.TreeSpec]] = {}

    def __call__(self, *args: Any) -> Any:
        leaves = pytree.tree_leaves(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = tuple((t.shape, t.stride()) for t in tensors)
        if key not in self._graphs:
            self._graphs[key] = self._compile(args, tensors)
        graph, spec = self._graphs[key]
        return pytree.tree_unflatten(graph(*tensors), spec)

    def _compile(self, args: Any, tensors: list[Tensor]) -> tuple[Callable[..., Any], pytree.TreeSpec]:
        leaves, spec = pytree.tree_flatten(args)
        where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        out_spec: pytree.TreeSpec | None = None

        def flat(*tensors: Tensor) -> list[Any]:
            nonlocal out_spec
            filled = list(leaves)
            for i, tensor in zip(where, tensors, strict=True):
                filled[i] = tensor
            outputs, out_spec = pytree.tree_flatten(self._fn(*pytree.tree_unflatten(filled, spec)))
            return outputs

        graph = make_fx(flat)(*tensors)
        assert out_spec is not None
        # Shapes and strides are this cache's key, so the compiler's own guards would only ask again; a wrapper in C++
        # calls the small products of an MLP without Python. Together 5.2 ms → 2.5 for sinusoids, 25 tasks, 5 steps.
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        if tensors[0].device.type == "cpu":
            options["cpp_wrapper"] = True
        return torch.compile(graph, fullgraph=True, dynamic=False, options=options), out_spec
