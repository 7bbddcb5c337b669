"""nn.Module → Program: a torch.fx trace, made into a plan of ops for each set of input shapes.

Known calls become ops (builder.py, lowering/), chains of them become the fused ops that exist (fuse.py), everything
else becomes an opaque op whose sweeps come from torch.func, and a module that cannot be traced becomes one opaque op
as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from .builder import Builder, ProgramSource
from .layout import Layout
from .messages import first_line
from .plan import Plan
from .trace import Draws, Recorded, Untraceable, Writes, has_hooks, trace
from .tree import Tree, call_with


def leaves_of(tree: Tree) -> tuple[Tensor, ...]:
    """The tensors of a user's tree."""
    if isinstance(tree, Tensor):
        return (tree,)
    return tuple(leaf for leaf in pytree.tree_leaves(tree) if leaf is not None)


class Program:
    """A user's module, traced once per train/eval mode and planned once per set of input shapes.

    Args:
        module: any module that `torch.func.functional_call` can run on one task.
        adapts: says of a trainable parameter's name whether the inner loop moves it (a fast weight); else all tasks
            share it.
    """

    def __init__(self, module: nn.Module, adapts: Callable[[str], bool] = lambda name: True) -> None:
        self.module = module
        self.layout = Layout.of(module, adapts)
        self.shared = Layout.of(module, lambda name: not adapts(name))
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        self._fast = None if not self.shared.names else [i for i, name in enumerate(names) if adapts(name)]
        trainable = set(names)
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.constant_names = tuple(name for name in named if name not in trainable)
        # every name of a tied tensor leads to the one slot of its first name
        first = {id(t): name for name, t in reversed(list(named.items()))}
        every = [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]
        self.canonical = {name: first[id(t)] for name, t in every}
        self._source = ProgramSource(module, self.layout, self.shared, self.constant_names, self.canonical)
        self._why_whole = ""  # why a plan is one opaque op, where its trace could not be lowered

    @cached_property
    def _trace(self) -> tuple[fx.GraphModule | None, str]:
        """The module's graph, or why there is none. Runs the module's Python: not before a plan is wanted."""
        try:
            if has_hooks(self.module):
                raise Untraceable("a trace would lose the hooks on it")
            return trace(self.module), ""
        except Untraceable as reason:
            return None, str(reason)
        except Exception as error:
            return None, f"torch.fx cannot trace it: {first_line(error)}"

    @property
    def untraceable(self) -> str:
        """Why the module is one opaque op as a whole; empty where it is not."""
        return self._why_whole or self._trace[1]

    def constants(self) -> tuple[Tensor, ...]:
        """Frozen parameters and buffers as they are now."""
        if not self.constant_names:
            return ()
        named = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return tuple(named[name].detach() for name in self.constant_names)

    def fast_of(self, trainable: Sequence[nn.Parameter]) -> Sequence[nn.Parameter]:
        """Those of the module's trainable parameters, in order, that the inner loop moves."""
        return trainable if self._fast is None else [trainable[i] for i in self._fast]

    def shared_of(self, trainable: Sequence[nn.Parameter]) -> Sequence[nn.Parameter]:
        """And those that all tasks share."""
        if self._fast is None:
            return ()
        return [p for i, p in enumerate(trainable) if i not in self._fast]

    @torch.inference_mode(False)  # tensors made in it have no versions, by which a trace notices writes
    def plan(self, inputs: Tree, *, rows: int | None = None, wanted: Sequence[bool] = ()) -> Plan:
        """The plan for inputs like these: a tree of [T, N, ...] tensors, of which only shapes and dtypes are read.

        With `rows` batch norm takes its statistics from the first so many samples of a task, the support set. `wanted`
        says of each tensor whether it gets a gradient; empty: none does.
        """
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode, torch.no_grad():
            one_task = pytree.tree_map(lambda x: torch.empty(x.shape[1:], dtype=x.dtype, device=x.device), inputs)
            named = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
            state = {
                n: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for n, t in named.items()
            }
        graph, _ = self._trace
        if graph is not None:
            try:
                return self._lower_graph(graph, one_task, state, mode, rows, wanted)
            except Untraceable as error:
                self._why_whole = str(error)
        return self._lower_whole(one_task, state, mode, rows, wanted)

    def _lower_graph(
        self,
        graph: fx.GraphModule,
        one_task: Tree,
        state: dict[str, Tensor],
        mode: FakeTensorMode,
        rows: int | None,
        wanted: Sequence[bool],
    ) -> Plan:
        args, kwargs = call_with(one_task)
        recorded = Recorded(graph)
        traced = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
        fakes = {f"module.{name}": state[self.canonical[name]] for name in traced if name in self.canonical}
        with mode, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            try:
                functional_call(recorded, fakes, args, kwargs, tie_weights=True)
            except TypeError:
                raise
            except Exception as error:
                raise Untraceable(f"its trace does not run on data-free tensors: {first_line(error)}") from error
        builder = Builder(self._source, one_task, state, rows, wanted)
        return builder.lower(graph, recorded)

    def _lower_whole(
        self, one_task: Tree, state: dict[str, Tensor], mode: FakeTensorMode, rows: int | None, wanted: Sequence[bool]
    ) -> Plan:
        if rows is not None:
            raise ValueError(
                'bn_statistics="support" needs a module that torch.fx can trace, so that its batch norms are known; '
                f'{self.untraceable}. Use bn_statistics="batch", or backend="reference"'
            )
        builder = Builder(self._source, one_task, state, rows, wanted)
        names = [*self.layout.names, *self.shared.names, *self.constant_names]
        slots = [builder.named[name] for name in names]
        leaves, spec = pytree.tree_flatten(one_task)
        buffers = {name for name, _ in self.module.named_buffers()}
        written: list[int] = []  # inputs that the module writes into: each call works on copies of them

        def run(*tensors: Tensor) -> tuple[tuple[Tensor | None, ...], pytree.TreeSpec]:
            tensors = tuple(x.clone() if i in written else x for i, x in enumerate(tensors))
            values = dict(zip(names, tensors[len(leaves) :], strict=True))
            # a buffer that the module updates (running statistics) is a copy, thrown away after the step
            values = {n: v.clone() if n in buffers else v for n, v in values.items()}
            args, kwargs = call_with(pytree.tree_unflatten(list(tensors[: len(leaves)]), spec))
            out, out_spec = pytree.tree_flatten(functional_call(self.module, values, args, kwargs))
            for leaf in out:
                if leaf is not None and not isinstance(leaf, Tensor):
                    raise TypeError(
                        f"model must return tensors, or tuples or dicts of them, got a {type(leaf).__name__}"
                    )
            return tuple(out), out_spec

        given = [*leaves, *(state[name] for name in names)]
        writes = Writes(given)
        with mode, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Draws() as draws:
            ys, out_spec = run(*given)
        written.extend(i for i, found in enumerate(writes.found()) if found)
        op_inputs = [*builder.inputs, *slots]
        outputs = builder.emit_opaque(
            lambda *tensors: _given(run(*tensors)[0]), op_inputs, _given(ys), type(self.module).__name__,
            self.untraceable, random=draws.any,
        )  # fmt: skip
        rest = iter(outputs)
        return builder.finish([None if y is None else next(rest) for y in ys], out_spec)


def _given(leaves: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in leaves if leaf is not None)
