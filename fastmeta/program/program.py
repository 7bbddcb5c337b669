"""nn.Module → Program: the module is run on one task without data, and its calls become a plan of ops.

Known calls become ops (builder.py, lowering/), chains of them become the fused ops that exist (fuse.py), everything
else becomes an opaque op whose sweeps come from torch.func.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmeta.inner_step import reads_inner_step
from fastmeta.internals import (
    FakeTensorMode,
    checkpointing_off,
    pytree,
    quiet_fake_tensors,
    reparametrized,
    weight_norm_op,
)
from fastmeta.stateless import State, written_out_weight_norm

from .builder import Builder, Given, Structure, loss_plan
from .layout import Layout
from .lowering import RULES
from .plan import Plan
from .recorder import Recorder, hooked, reason_of
from .targets import check_per_task_loss
from .trace import Trace, Untraceable, Value, needed, same_calls
from .tree import Tree, call_with

_REPLACED: dict[Any, Callable[..., Any]] = {weight_norm_op: written_out_weight_norm}


def leaves_of(tree: Tree) -> tuple[Tensor, ...]:
    """The tensors of a user's tree."""
    if isinstance(tree, Tensor):
        return (tree,)
    return tuple(leaf for leaf in pytree.tree_leaves(tree) if leaf is not None)


class LossRun(NamedTuple):
    """A loss to be run behind the module.

    `skip` rows of the module's outputs are support samples in front, which it does not see.
    """

    name: str  # of the argument, for messages
    loss: Callable[[Tree, Tree], Tensor]
    targets: Tree  # [T, N, ...]
    wanted: Sequence[bool]  # which of them get a gradient
    skip: int = 0


class _Start(NamedTuple):
    """What a run without data starts from."""

    recorder: Recorder
    one_task: Tree
    state: dict[str, Tensor]  # parameters and buffers
    given: list[Value]  # of the inputs
    named: dict[str, Value]  # of the state


class Program:
    """A user's module, run and planned once per state of the module and set of input shapes.

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
        self.constant_names = tuple(name for name in self._named() if name not in trainable)
        buffers = dict(module.named_buffers())
        self.step_names = tuple(name for name, x in buffers.items() if reads_inner_step(name, x))

    def _named(self) -> dict[str, Tensor]:
        """Parameters and buffers, tied ones under their first name."""
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def constants(self) -> tuple[Tensor, ...]:
        """Frozen parameters and buffers as they are now."""
        if not self.constant_names:
            return ()
        named = self._named()
        return tuple(named[name].detach() for name in self.constant_names)

    def fast_of(self, trainable: Sequence[nn.Parameter]) -> Sequence[nn.Parameter]:
        """Those of the module's trainable parameters, in order, that the inner loop moves."""
        return trainable if self._fast is None else [trainable[i] for i in self._fast]

    def shared_of(self, trainable: Sequence[nn.Parameter]) -> Sequence[nn.Parameter]:
        """And those that all tasks share."""
        if self._fast is None:
            return ()
        return [p for i, p in enumerate(trainable) if i not in self._fast]

    @torch.inference_mode(False)  # tensors made in it have no versions, by which a run notices writes
    def plan(
        self, inputs: Tree, *, rows: int | None = None, wanted: Sequence[bool] = (), loss: LossRun | None = None
    ) -> Plan:
        """The plan for inputs like these: a tree of [T, N, ...] tensors, of which only shapes and dtypes are read.

        With `rows` batch norm takes its statistics from the first so many samples of a task, the support set. `wanted`
        says of each tensor whether it gets a gradient; empty: none does. A `loss` that has no op of its own is run
        behind the module, in whose place it may read what the module's forward has left (`Plan.loss`).

        Raises:
            Untraceable: the program needs autograd, task by task.
            TypeError: the module or the loss returns what no module or loss may.
        """
        if name := hooked(self.module):
            raise Untraceable(f"{name} has a hook, which only a run of the module itself calls")
        if self.layout.mixed or self.shared.mixed:
            raise Untraceable("its parameters have several dtypes, or complex ones")
        leaves = leaves_of(inputs)
        wanted = tuple(wanted) or (False,) * len(leaves)
        fast = set(self.layout.names)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        # an autocast around the call is none of the module's: precision is the learner's
        no_autocast = torch.autocast(self.layout.device.type, enabled=False)
        with no_autocast, mode, torch.enable_grad(), quiet_fake_tensors():
            start = self._start(inputs, wanted)
            trace = self._run(start, lambda: self._start(inputs, wanted), loss)
        builder = Builder(self.layout.device, rows)
        slots = {n: builder.give(value, moving=n in fast) for n, value in start.named.items()}
        names = (self.layout.names, self.shared.names, self.constant_names)
        handed = Given([builder.give(v) for v in start.given], *([slots[n] for n in some] for some in names))
        returned = [v for v in trace.outputs if v is not None]
        outputs = builder.lower(trace.calls, [*returned, *trace.reads])
        structure = Structure(trace.output_spec, tuple(v is not None for v in trace.outputs))
        behind = None if trace.loss is None else loss_plan(trace, builder)
        plan = builder.plan(handed, outputs, structure, hidden=len(trace.reads), loss=behind)
        return replace(plan, step_constants=self._step_constants(plan)) if self.step_names else plan

    def _step_constants(self, plan: Plan) -> tuple[int, ...]:
        """Which of the constants say in which inner step it is, and are read by a node or handed on."""
        read = {*(slot for node in plan.nodes for slot in node.inputs), *plan.output_slots}
        named = zip(self.constant_names, plan.constant_slots, strict=True)
        return tuple(i for i, (name, slot) in enumerate(named) if name in self.step_names and slot in read)

    def _start(self, inputs: Tree, wanted: Sequence[bool]) -> _Start:
        """New tensors without data for a run, in a FakeTensorMode."""
        one_task = _one_task(inputs, wanted)
        state = {name: _fake(t, t.shape, t.requires_grad) for name, t in self._named().items()}
        recorder = Recorder(self.module, RULES, _REPLACED)
        given = [recorder.give(x) for x in leaves_of(one_task)]
        named = {n: recorder.give_parameter(x) if x.requires_grad else recorder.give(x) for n, x in state.items()}
        return _Start(recorder, one_task, state, given, named)

    def _forward(self, start: _Start) -> Any:
        """What the module returns on a run's tensors."""
        args, kwargs = call_with(start.one_task)
        with _user_code(start.recorder), start.recorder:
            return self.module(*args, **kwargs)

    def _run(self, start: _Start, again: Callable[[], _Start], loss: LossRun | None) -> Trace:
        """The module, and the loss behind it. `again` makes what another run starts from."""
        recorder = start.recorder
        modules = [self.module, *([loss.loss] if loss is not None and isinstance(loss.loss, nn.Module) else [])]
        held = State(list(dict.fromkeys(m for root in modules for m in root.modules())))
        try:
            with (
                checkpointing_off(),
                sdpa_kernel(SDPBackend.MATH),
                reparametrized(self.module, start.state, tie_weights=True),
            ):
                leaves, spec = pytree.tree_flatten(self._forward(start))
                _check_outputs(leaves)
                trace = Trace(recorder.calls, [None if y is None else recorder.value(y) for y in leaves], spec)
                if loss is not None:
                    _run_loss(recorder, trace, leaves, loss)
            if name := held.history():
                self._check_history(name, trace, again())
        finally:
            held.restore()
        return trace

    def _check_history(self, name: str, trace: Trace, start: _Start) -> None:
        """A forward that has changed an attribute, a counter perhaps, does the same when it runs again."""
        with checkpointing_off(), reparametrized(self.module, start.state, tie_weights=True):
            self._forward(start)
        if not same_calls(trace.calls, start.recorder.calls):
            raise ValueError(
                f"model's forward changes its attribute {name!r} and computes something else the next time it runs, so "
                "that a meta-gradient would depend on how often it ran before. Set the attribute between meta-steps, "
                "outside of forward, or pass what it holds as an input"
            )


def _run_loss(recorder: Recorder, trace: Trace, outputs: list[Tensor | None], run: LossRun) -> None:
    """The loss on the outputs of a trace, which gets the calls behind the module's."""
    if isinstance(run.loss, nn.Module) and (name := hooked(run.loss)):
        raise Untraceable(f"{run.name} has a hook ({name}), which only a run of itself calls")
    targets = _one_task(run.targets, run.wanted)
    trace.targets = [recorder.give(x) for x in leaves_of(targets)]
    trace.loss_inputs = trace.outputs
    if run.skip:
        rest = [
            None if y is None else _fake(y, (y.shape[0] - run.skip, *y.shape[1:]), y.requires_grad) for y in outputs
        ]
        outputs, trace.loss_inputs = rest, [None if y is None else recorder.give(y) for y in rest]
    trace.calls = list(recorder.calls)
    with _user_code(recorder), recorder:
        value = run.loss(pytree.tree_unflatten(outputs, trace.output_spec), targets)
    check_per_task_loss(run.name, value)
    trace.loss = recorder.value(value)
    trace.loss_calls = needed(recorder.calls[len(trace.calls) :], [trace.loss])
    if any(call.random for call in trace.loss_calls):
        raise Untraceable(f"{run.name} draws random numbers, and would draw others for its derivatives")
    known = {id(v) for v in (*trace.loss_inputs, *trace.targets) if v is not None}
    known |= {id(v) for call in trace.loss_calls for v in call.made if v is not None}
    read = [v for call in trace.loss_calls for v in call.values()] + [trace.loss]
    trace.reads = list({id(v): v for v in read if v.stored is None and id(v) not in known}.values())
    if run.skip and {id(v) for call in trace.calls for v in call.made} & {id(v) for v in trace.reads}:
        raise Untraceable(f"{run.name} reads what the forward leaves, which mixes support and query samples")


@contextmanager
def _user_code(recorder: Recorder) -> Iterator[None]:
    """Whatever a run without data meets sends the program to a run with data, whose errors are the user's own."""
    try:
        yield
    except Untraceable:
        raise
    except Exception as error:
        raise Untraceable(reason_of(error, recorder.failed)) from error


def _check_outputs(leaves: Sequence[Any]) -> None:
    for leaf in leaves:
        if leaf is not None and not isinstance(leaf, Tensor):
            raise TypeError(f"model must return tensors, or tuples or dicts of them, got a {type(leaf).__name__}")


def _one_task(tree: Tree, wanted: Sequence[bool]) -> Tree:
    """Tensors [T, ...] as one task's without data."""
    leaves, spec = pytree.tree_flatten(tree)
    wants = iter(wanted or (False,) * len(leaves))
    return pytree.tree_unflatten([None if x is None else _fake(x, x.shape[1:], next(wants)) for x in leaves], spec)


def _fake(like: Tensor, shape: Sequence[int], gradient: bool) -> Tensor:
    if tuple(shape) == tuple(like.shape):
        x = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    else:
        x = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    return x.requires_grad_(gradient and (x.is_floating_point() or x.is_complex()))
