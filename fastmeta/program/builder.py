"""A plan under construction: every call of a trace becomes an op of its own (lowering) or an opaque one."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fastmeta.ops.base import Op
from fastmeta.ops.opaque import Opaque

from .fuse import group
from .layout import Layout
from .lowering import FUNCTIONS, METHODS, MODULES, NotKnown, Rule, Slot
from .plan import Node, Plan
from .trace import INPLACE_OPERATORS, Recorded, Untraceable, has_hooks
from .tree import Tree, call_with

# Calls without a tensor input whose result is the same every time: evaluated once, when the plan is made.
_CREATORS = frozenset(
    {
        torch.arange,
        torch.zeros,
        torch.ones,
        torch.full,
        torch.eye,
        torch.linspace,
        torch.tensor,
        torch.tril,
        torch.triu,
    }
)
_MUTATING_FUNCTIONS = frozenset({operator.setitem, operator.delitem})


class ProgramSource(NamedTuple):
    """A user's module and the names of its tensors: what of a `Program` a plan is built from."""

    module: nn.Module
    layout: Layout  # of the fast weights
    shared: Layout  # of the trainable parameters that all tasks share
    constant_names: tuple[str, ...]  # of frozen parameters and buffers
    canonical: dict[str, str]  # any name of a tensor -> its first one, which tied tensors share


class Builder:
    """A plan under construction; what the rules of lowering/ are given as `to`."""

    def __init__(
        self, program: ProgramSource, one_task: Tree, state: dict[str, Tensor], rows: int | None, wanted: Sequence[bool]
    ) -> None:
        self.program = program
        self.rows = rows
        self.nodes: list[Node] = []
        self.count = 0
        self.active: list[bool] = []  # of every slot: does it depend on something that gets a gradient
        self.moving: list[bool] = []  # and on a fast weight
        self.sizes: list[int] = []
        self.stored: dict[int, Tensor] = {}
        self.values: dict[fx.Node, Any] = {}  # of the trace's nodes, without data
        self.random: set[fx.Node] = set()  # the nodes that draw random numbers
        self.writing: set[fx.Node] = set()  # the nodes that write into what they are given
        self.label = ""
        self._layers = 0
        self._paths = {id(m): path for path, m in program.module.named_modules()}
        leaves, spec = pytree.tree_flatten(one_task)
        self.wanted = tuple(wanted) or (False,) * len(leaves)
        self.inputs = [self._slot(x, w and _has_derivative(x)) for x, w in zip(leaves, self.wanted, strict=True)]
        self.args, self.kwargs = call_with(pytree.tree_unflatten(self.inputs, spec))
        self._keys = self._slot(torch.empty((), dtype=torch.int64, device=program.layout.device), False)
        self.params = [self._slot(state[n], True, True) for n in program.layout.names]
        self.shared = [self._slot(state[n], True) for n in program.shared.names]
        self.constants = [self._slot(state[n], False) for n in program.constant_names]
        names = (*program.layout.names, *program.shared.names, *program.constant_names)
        self.named = dict(zip(names, (*self.params, *self.shared, *self.constants), strict=True))

    def _slot(self, like: Tensor, active: bool, moving: bool = False) -> Slot:
        self.active.append(active)
        self.moving.append(moving)
        self.sizes.append(like.numel() * like.element_size())
        self.count += 1
        return Slot(self.count - 1, like)

    # what rules use -------------------------------------------------------------------------------------------------

    def emit(self, op: Op, *inputs: Slot) -> Slot:
        """Adds a node of `op`, which has one output, and gives the output's slot."""
        with torch.no_grad():
            like = self._like(op, inputs)
        needs, moves = self._needs(inputs)
        out = self._slot(like, any(needs), any(moves))
        self.nodes.append(Node(op, tuple(s.index for s in inputs), (out.index,), needs, moves, self.label))
        return out

    def tensor(self, module: nn.Module, name: str) -> Slot | None:
        """The slot of one of the user's submodules' parameters or buffers, or None where it has none of that name."""
        if getattr(module, name) is None:
            return None
        path = self._paths[id(module)]
        return self.named[self.program.canonical[f"{path}.{name}" if path else name]]

    def keys(self) -> Slot:
        """The slot of the step's random keys [T]."""
        return self._keys

    def next_layer(self) -> int:
        """A number of its own for each dropout, from 0."""
        self._layers += 1
        return self._layers - 1

    # --------------------------------------------------------------------------------------------------------------

    def _needs(self, inputs: Sequence[Slot]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Which inputs get a gradient, and which of them move."""
        smooth = [s.index for s in inputs if _has_derivative(s.like)]
        return (
            tuple(s.index in smooth and self.active[s.index] for s in inputs),
            tuple(s.index in smooth and self.moving[s.index] for s in inputs),
        )

    @staticmethod
    def _like(op: Op, inputs: Sequence[Slot]) -> Tensor:
        """The op's output for one task, on data-free tensors."""
        with FakeTensorMode(allow_non_fake_inputs=True):
            one = [torch.empty((1, *s.shape), dtype=s.like.dtype, device=s.like.device) for s in inputs]
            y, _ = op.forward(*one)
            return y[0]

    def emit_opaque(
        self, fn: Any, inputs: list[Slot], ys: Sequence[Tensor], label: str, why: str, *, random: bool
    ) -> list[Slot]:
        """Adds a node of `fn` as an opaque op, and gives the slots of its outputs, which are like `ys`.

        `label` is what `explain()` calls it, `why` its reason there. A `random` one is given the step's keys, too.
        """
        op = Opaque(fn, label, random)
        needs, moves = self._needs(inputs)
        outs = [self._slot(y, any(needs) and _has_derivative(y), any(moves) and _has_derivative(y)) for y in ys]
        if not any(self.active[s.index] for s in outs):  # a comparison, an index
            needs = moves = (False,) * len(needs)
        slots = [*inputs, self._keys] if random else inputs
        if random:
            needs, moves = (*needs, False), (*moves, False)
        node = Node(
            op, tuple(s.index for s in slots), tuple(s.index for s in outs), needs, moves, self.label or label, why
        )
        self.nodes.append(node)
        return outs

    def lower(self, graph: fx.GraphModule, recorded: Recorded) -> Plan:
        """The plan of a trace, with the values of its run on data-free tensors.

        Raises:
            Untraceable: only the module as a whole can be an opaque op.
        """
        values, self.values = recorded.values, recorded.values
        self.random, self.writing = recorded.random, recorded.writing
        env: dict[fx.Node, Any] = {}
        modules = dict(graph.named_modules())
        given = iter(self.args)
        for node in graph.graph.nodes:
            if node.op == "output":
                leaves, spec = pytree.tree_flatten(fx.map_arg(node.args[0], env.__getitem__))
                if not all(leaf is None or isinstance(leaf, Slot) for leaf in leaves):
                    raise Untraceable("it returns something that is not a tensor")
                return self.finish(leaves, spec)
            if not any(isinstance(v, Tensor) for v in pytree.tree_leaves(values[node])):
                env[node] = values[node]  # a size, a flag: the same for every task
            elif node.op == "placeholder":
                slot = next(given, None)
                env[node] = self.kwargs[str(node.target)] if slot is None else slot
            elif node.op == "get_attr":
                env[node] = self._attribute(graph, node)
            else:
                env[node] = self._call(node, env, modules, values[node])
        raise AssertionError("an fx graph ends in an output node")

    def _attribute(self, graph: fx.GraphModule, node: fx.Node) -> Slot:
        name = str(node.target)
        if name in self.program.canonical:
            return self.named[self.program.canonical[name]]
        owner, _, leaf = name.rpartition(".")
        value = getattr(graph.get_submodule(owner), leaf)
        return self._store(value)

    def _store(self, value: Tensor) -> Slot:
        slot = self._slot(value, False)
        self.stored[slot.index] = value
        return slot

    def _call(self, node: fx.Node, env: dict[fx.Node, Any], modules: Mapping[str, nn.Module], value: Any) -> Any:
        args = fx.map_arg(node.args, env.__getitem__)
        kwargs = fx.map_arg(node.kwargs, env.__getitem__)
        target: Any = node.target
        inplace = node in self.writing or target in INPLACE_OPERATORS or kwargs.get("inplace", False)
        if node.op == "call_module":
            module = modules[target]
            rule, first, self.label = MODULES.get(type(module)), (self._original(module, target),), target
            if rule is not None and has_hooks(module):
                rule = None
            inplace = inplace or getattr(module, "inplace", False)
        else:
            table: Any = FUNCTIONS if node.op == "call_function" else METHODS
            rule, first, self.label = table.get(target), (), getattr(target, "__name__", str(target))
            inplace = inplace or (node.op == "call_method" and target.endswith("_") and not target.endswith("__"))
        try:
            if rule is None:
                raise NotKnown("no op of its own")
            if any(isinstance(leaf, Slot) and leaf.like.is_complex() for leaf in pytree.tree_leaves((args, kwargs))):
                raise NotKnown("complex numbers")  # whose cotangents are conjugated
            _check_arguments(rule, self, *first, *args, **kwargs)
            out = rule(self, *first, *args, **kwargs)
        except NotKnown as reason:
            if inplace or target in _MUTATING_FUNCTIONS:
                raise Untraceable(f"{self.label} changes a value in place and has no op of its own") from reason
            out = self._opaque(node, args, kwargs, modules, value, str(reason))
        if inplace and isinstance(node.args[0], fx.Node):
            self._write(node, node.args[0], out, env)
        return out

    def _write(self, node: fx.Node, changed: fx.Node, out: Any, env: dict[fx.Node, Any]) -> None:
        """Whoever reads what `node` changed in place from here on, under any name, sees what was written into it."""
        tensor = self.values[changed]
        storage = tensor.untyped_storage()._cdata
        for other in env:
            value = self.values[other]
            if value is tensor:
                env[other] = out
                continue
            leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
            is_view = any(leaf.untyped_storage()._cdata == storage for leaf in leaves)
            if is_view and any(user not in env and user is not node for user in other.users):
                raise Untraceable(f"{self.label} changes in place what is read elsewhere through a view")

    def _original(self, module: nn.Module, path: str) -> nn.Module:
        """The user's own submodule behind one of the trace's, for looking up its parameters."""
        original = self.program.module.get_submodule(path)
        assert type(original) is type(module)
        return original

    def _opaque(
        self, node: fx.Node, args: Any, kwargs: Any, modules: Mapping[str, nn.Module], value: Any, why: str
    ) -> Any:
        target: Any = node.target
        leaves, spec = pytree.tree_flatten((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Slot)]
        where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Slot)]
        ys, out_spec = pytree.tree_flatten(value)
        if not all(isinstance(y, Tensor) for y in ys):
            raise Untraceable(f"{self.label} returns something that is not a tensor")
        names: list[str] = []
        module = None
        if node.op == "call_module":
            module = self._original(modules[target], target)
            names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
            inputs = [*inputs, *(self._owned(target, name) for name in names)]
        elif not inputs:
            if target not in _CREATORS:
                raise Untraceable(f"{self.label} makes a tensor from nothing, perhaps another one every time")
            return pytree.tree_unflatten(
                [self._store(y) for y in pytree.tree_leaves(target(*args, **kwargs))], out_spec
            )
        buffers = set() if module is None else {name for name, _ in module.named_buffers()}

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            filled = list(leaves)
            for i, x in zip(where, tensors, strict=False):
                filled[i] = x
            a, k = pytree.tree_unflatten(filled, spec)
            if module is not None:
                state = dict(zip(names, tensors[len(where) :], strict=True))
                state = {n: v.clone() if n in buffers else v for n, v in state.items()}
                out = functional_call(module, state, a, k)
            elif node.op == "call_method":
                out = getattr(a[0], target)(*a[1:], **k)
            else:
                out = target(*a, **k)
            return tuple(pytree.tree_leaves(out))

        title = type(module).__name__ if module is not None else self.label
        outs = self.emit_opaque(run, inputs, ys, title, why, random=node in self.random)
        return pytree.tree_unflatten(outs, out_spec)

    def _owned(self, path: str, name: str) -> Slot:
        return self.named[self.program.canonical[f"{path}.{name}" if path else name]]

    def finish(self, leaves: Sequence[Slot | None], spec: pytree.TreeSpec) -> Plan:
        outputs = [leaf for leaf in leaves if leaf is not None]
        nodes = group(self.nodes, {s.index for s in outputs})
        kept = (*outputs, *self.params, *self.shared, *self.constants)
        pinned = {s.index for s in kept} | set(self.stored)
        return Plan(
            nodes=_with_last_use(nodes, pinned),
            slots=self.count,
            input_slots=[s.index for s in self.inputs],
            keys_slot=self._keys.index,
            param_slots=[s.index for s in self.params],
            shared_slots=[s.index for s in self.shared],
            constant_slots=[s.index for s in self.constants],
            output_slots=[s.index for s in outputs],
            output_spec=spec,
            output_given=tuple(leaf is not None for leaf in leaves),
            output_active=tuple(self.active[s.index] for s in outputs),
            output_moving=tuple(self.moving[s.index] for s in outputs),
            input_wanted=self.wanted,
            input_shapes=[s.shape for s in self.inputs],
            output_shapes=[s.shape for s in outputs],
            stored=self.stored,
            bytes_per_task=sum(self.sizes),
        )


def _with_last_use(nodes: list[Node], pinned: set[int]) -> list[Node]:
    """Marks after which node each intermediate value may be released."""
    kept: set[int] = set(pinned)  # what the module's caller or a later node reads
    marked: list[Node] = []
    for node in reversed(nodes):
        last = tuple({*node.inputs, *node.outputs} - kept)
        kept.update(last)
        marked.append(replace(node, last_use=last))
    return marked[::-1]


def _check_arguments(rule: Rule, *args: Any, **kwargs: Any) -> None:
    """Raises NotKnown where a call has arguments that its rule has no parameters for.

    Looked at before the rule runs, so that an error inside of it is not taken for one of these.
    """
    try:
        _signature(rule).bind(*args, **kwargs)
    except TypeError as error:
        raise NotKnown(f"called with unusual arguments ({error})") from error


@functools.cache  # there are only as many rules as lowering/tables.py has
def _signature(rule: Rule) -> inspect.Signature:
    return inspect.signature(rule)


def _has_derivative(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()
