"""A function of tensors, compiled whole: traced to one flat graph, then `torch.compile(fullgraph=True)`.

Tracing first with make_fx leaves the compiler nothing of Python to understand, so it takes torch.func transforms
and our own classes alike, and a graph break cannot happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fastmeta.engine.recent import Recent
from fastmeta.internals import inductor, make_fx, pytree
from fastmeta.program.messages import first_line


def _sum_of_product(plus: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return plus + torch.bmm(a, b)


def _minus_product(plus: Tensor, a: Tensor, b: Tensor, *, value: float = 1.0) -> Tensor:
    """φ − α g without the factor of −1 that addcmul has; any other is one instruction as it is."""
    return plus - a * b if value == -1 else NotImplemented


# The compiler fuses a sum with what follows, but not the one inside a product: 25 sinusoids take 1.0 ms for 1.3.
_DECOMPOSED = {torch.ops.aten.baddbmm.default: _sum_of_product, torch.ops.aten.addcmul.default: _minus_product}


_PARTS = {
    "_whole": "the meta-step",
    "meta_step": "the meta-step",
    "adapt": "the inner loop",
    "pull": "the backward of the inner loop",
    "outputs": "the query pass",
    "pullback": "the backward of the query pass",
}


class _Graph(NamedTuple):
    """One compiled trace."""

    code: Callable[..., Sequence[Any]]
    takes: list[int]  # which of the function's tensors and the constants behind them, in order
    gives: Callable[[list[Any]], Any]  # [*results of the code, *tensors, None] → the function's tree of results
    constants: tuple[Tensor, ...] = ()  # that the function holds, as they are at each call

    def __call__(self, tensors: list[Tensor]) -> Any:
        if self.constants:
            tensors = [*tensors, *self.constants]
        return self.gives([*self.code(*[tensors[i] for i in self.takes]), *tensors, None])


class Compiled:
    """`fn` on trees of tensors, compiled once for every set of shapes and strides: a trace holds both.

    Anything else in the trees must not vary. `threads` is how many the compiled loops run on; None: all.
    """

    def __init__(self, fn: Callable[..., Any], *, threads: int | None = None) -> None:
        self._fn = fn
        self._threads = threads
        self._graphs: Recent[tuple[Any, ...], _Graph] = Recent()

    def prepare(self, *args: Any) -> Callable[[], Any]:
        """The call on `args`, compiled by now, for any thread to make."""
        tensors: list[Tensor] = []
        _collect(args, tensors)
        key = tuple([(t.shape, t.stride()) for t in tensors])
        return partial(self._graphs.get(key, lambda: self._compile(args, tensors)), tensors)

    def _compile(self, args: Any, tensors: list[Tensor]) -> _Graph:
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

        with self._explained():
            graph = make_fx(flat, _DECOMPOSED)(*tensors)
            assert out_spec is not None
            constants = _as_inputs(graph)
            made = self._through_torch_compile(graph, [*tensors, *constants], out_spec)
        return made._replace(constants=tuple(constants))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says of an error of PyTorch's or its compiler's what was compiled; others pass as they are."""
        try:
            yield
        except (RuntimeError, AssertionError) as error:
            fn = self._fn.func if isinstance(self._fn, partial) else self._fn
            name = getattr(fn, "__name__", type(fn).__name__)
            raise RuntimeError(
                f"compile=True: PyTorch cannot compile {_PARTS.get(name, name)} ("
                f"{first_line(error)}). Use compile=False, which runs the same op by op"
            ) from error

    def _through_torch_compile(self, graph: fx.GraphModule, tensors: list[Tensor], out_spec: pytree.TreeSpec) -> _Graph:
        """The code that torch.compile makes of `graph`, and how its arguments and results lie.

        Called through torch.compile, it would compare the same shapes and strides again that are this cache's key,
        and run Python for each product: 25 sinusoids, 5 steps, take 5.2 ms that way and 1.8 this way.
        """
        options: dict[str, Any] = {}
        if tensors[0].device.type == "cpu":
            options["cpp_wrapper"] = True
            if self._threads is not None:
                options["cpp.threads"] = self._threads
        found: list[tuple[Callable[..., Any], list[int], list[Any]]] = []

        def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            code: Any = inductor(gm, list(inputs), options)

            def first(*given: Tensor) -> Any:
                results = code(*given)
                found.append((code, [_index(probes, x) for x in given], [*results]))
                return results

            return first

        probes = [t.detach() for t in tensors]  # each an object of its own, to be known again
        outputs = torch.compile(graph, fullgraph=True, dynamic=False, backend=backend)(*probes)
        if not found:  # nothing to compute
            found.append((lambda: (), [], []))
        ((code, takes, results),) = found
        gives = [_index([*results, *probes, None], y) for y in outputs]
        return _Graph(code, takes, _filler(pytree.tree_unflatten(gives, out_spec)))


def _as_inputs(graph: fx.GraphModule) -> list[Tensor]:
    """Makes inputs behind the others of the tensors that a trace holds, and gives them.

    They are what a loss or a module reads beside its arguments, such as class weights: compiled into the code they
    would stay as they are now.
    """
    constants: list[Tensor] = []
    placeholders: dict[int, fx.Node] = {}
    last = next((node for node in reversed(graph.graph.nodes) if node.op == "placeholder"), None)
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        value = getattr(graph, str(node.target))
        if not isinstance(value, Tensor):
            continue
        if id(value) not in placeholders:
            with graph.graph.inserting_after(last) if last is not None else graph.graph.inserting_before(node):
                last = placeholders[id(value)] = graph.graph.placeholder(f"constant_{len(constants)}")
            constants.append(value)
        node.replace_all_uses_with(placeholders[id(value)])
        graph.graph.erase_node(node)
    if constants:
        graph.recompile()
    return constants


def _index(values: Sequence[Any], wanted: Any) -> int:
    """Where this very object is."""
    return next(i for i, value in enumerate(values) if value is wanted)


def _filler(tree: Any) -> Callable[[list[Any]], Any]:
    """The function of values to `tree` with every place, a number, replaced by the value there.

    Written out as one expression: walking the tree in every meta-step takes ten times as long.
    """
    classes: dict[str, Any] = {}

    def text(tree: Any) -> str:
        if tree.__class__ is int:
            return f"values[{tree}]"
        items = "".join(f"{text(item)}, " for item in tree)
        if tree.__class__ is list:
            return f"[{items}]"
        if not hasattr(tree, "_make"):
            return f"({items})"
        name = f"class_{len(classes)}"
        classes[name] = tree.__class__
        return f"{name}({items})"

    return eval(f"lambda values: {text(tree)}", classes)


_NESTED = (tuple, list)  # `tuple | list` would be made anew at every leaf


def _collect(tree: Any, into: list[Tensor]) -> None:
    """The tensors of `tree` in pytree's order, a tenth of pytree's time (0.2 ms for the data of a meta-step)."""
    for leaf in tree:
        if isinstance(leaf, Tensor):
            into.append(leaf)
        elif isinstance(leaf, _NESTED):
            _collect(leaf, into)
        else:
            assert not isinstance(leaf, dict), "engine functions take tuples and lists"
