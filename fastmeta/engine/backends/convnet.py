"""Whether a program is a convolutional network that the Triton kernels take, residual ones among them, and its
description for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from fastmeta.engine.meta_step import Engine
from fastmeta.ops.activation import Activation
from fastmeta.ops.arithmetic import Add, Scale
from fastmeta.ops.conv2d import Conv2d
from fastmeta.ops.conv_block import ConvBlock
from fastmeta.ops.linear import Linear
from fastmeta.ops.norm import Norm
from fastmeta.ops.pool import AvgPool2d, MaxPool2d
from fastmeta.ops.shape import Reduce, Reshape
from fastmeta.program.layout import Layout
from fastmeta.program.plan import Node, Plan

from .perceptron import (
    Layer,
    Limits,
    NotTaken,
    arguments,
    check_dtype,
    check_layers,
    check_loss,
    check_used,
    linear_layer,
)

KERNELS, STRIDES = (1, 3, 5), (1, 2)
MOST_CHANNELS = 128
SIDES = 5, 84
"""Of a network's images: what the kernels are tested on."""

_POOLS = {
    MaxPool2d((2, 2), (2, 2), (0, 0), (1, 1), False): "max",
    AvgPool2d((2, 2), (2, 2), (0, 0), False, True, None): "mean",
}
_BATCH_NORM_DIMS = (1, 3, 4)


class Block(NamedTuple):
    """y = pool(f(norm(x ∗ W + b))) of images [C, H, W]; parameters are places in the layout (None: not there)."""

    image: tuple[int, int, int]
    filters: int
    kernel: int
    stride: int
    padding: int
    weight: int
    bias: int | None
    eps: float | None = None  # of a batch norm, if there is one
    gamma: int | None = None
    beta: int | None = None
    kind: str = "identity"
    args: tuple[float, ...] = ()
    pool: str = "none"

    @property
    def out(self) -> tuple[int, int, int]:
        """Shape of y."""
        _, *sides = self.image
        height, width = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in sides)
        return (self.filters, height, width) if self.pool == "none" else (self.filters, height // 2, width // 2)


class Sum(NamedTuple):
    """y = pool(f(a + b)) of two stages' images [C, H, W]."""

    image: tuple[int, int, int]
    kind: str = "identity"
    args: tuple[float, ...] = ()
    pool: str = "none"

    @property
    def out(self) -> tuple[int, int, int]:
        """Shape of y."""
        channels, height, width = self.image
        return self.image if self.pool == "none" else (channels, height // 2, width // 2)


class GlobalMean(NamedTuple):
    """Mean over the positions of images [C, H, W]."""

    image: tuple[int, int, int]


Stage = Layer | Block | Sum | GlobalMean


class Graph(NamedTuple):
    """Stages in the order in which they run, and of which of them each takes its inputs (−1: the network's input)."""

    stages: list[Stage]
    sources: list[tuple[int, ...]]

    @classmethod
    def chain(cls, stages: Sequence[Stage]) -> Graph:
        """Stages one behind the other."""
        return cls(list(stages), [(i - 1,) for i in range(len(stages))])


def has_convolutions(engine: Engine) -> bool:
    """Whether the program has any."""
    return any(isinstance(node.op, Conv2d | ConvBlock) for node in engine.outer.plan.nodes)


def convnet(engine: Engine, limits: Limits) -> Graph:
    """The stages of the engine's program.

    Raises:
        NotTaken: it is not made of convolutions with what is behind them, sums of two of those, and linear layers at
            its end, within the limits.
    """
    inner, outer = engine.loop.objective, engine.outer
    check_dtype(inner.layout)
    graph = _Walk(inner.plan, inner.layout, limits).graph
    if _Walk(outer.plan, outer.layout, limits, rows=outer.skip or None).graph != graph:
        raise NotTaken("the query pass is another program than the inner loop's")
    check_loss(inner)
    for plan in (inner.plan, outer.plan):
        _check_size(graph.stages, plan.input_shapes[0][0])
    return graph


def _check_size(stages: list[Stage], samples: int) -> None:
    widest = max(
        max(prod(s.image), prod(s._replace(pool="none").out)) for s in stages if isinstance(s, Block)
    )  # fmt: skip
    if samples * widest >= 2**31:
        raise NotTaken(f"{samples} samples a task, and the kernels count a layer's values in 32 bits")


class _Here(NamedTuple):
    """What is in a slot: the output of a stage so far (−1: the network's input), as a sample of some shape; where a
    sine must follow, of so many times it."""

    stage: int
    shape: tuple[int, ...]
    frequency: float | None = None


class _Walk:
    """Goes over a plan's nodes and gathers its stages. `rows`: of so many samples batch norms have their statistics."""

    def __init__(self, plan: Plan, layout: Layout, limits: Limits, rows: int | None = None) -> None:
        if len(plan.input_slots) != 1 or len(plan.output_slots) != 1:
            raise NotTaken("the kernels take modules of one input and one output tensor")
        self.place = {slot: i for i, slot in enumerate(plan.param_slots)}
        self.layout, self.limits, self.rows = layout, limits, rows
        self.stages: list[Stage] = []
        self.sources: list[tuple[int, ...]] = []
        self.readers = Counter(slot for node in plan.nodes for slot in node.inputs)
        self.at = {plan.input_slots[0]: _Here(-1, plan.input_shapes[0][1:])}
        for node in plan.nodes:
            if node.inputs[0] not in self.at:
                raise NotTaken(f"{_name(node)}: no kernel for {node.op.name} of anything but the input's images")
            self.at[node.outputs[0]] = self._take(node, self.at[node.inputs[0]])
        end = self.at.get(plan.output_slots[0])
        if end is None or end.stage != len(self.stages) - 1 or end.frequency is not None:
            raise NotTaken("the module returns something else than its last layer's output")
        self._check(plan)

    @property
    def graph(self) -> Graph:
        return Graph(self.stages, self.sources)

    def _check(self, plan: Plan) -> None:
        if not self.stages or not isinstance(self.stages[-1], Layer):
            raise NotTaken("the last layer must be linear")
        check_layers([s for s in self.stages if isinstance(s, Layer)], plan, self.limits)
        for stage in self.stages:
            if isinstance(stage, Block | Sum) and stage.kind not in self.limits.kinds:
                raise NotTaken(f"no kernel for the activation {stage.kind}")
        places = [
            (s.weight, s.bias) if isinstance(s, Layer) else (s.weight, s.bias, s.gamma, s.beta)
            for s in self.stages
            if isinstance(s, Layer | Block)
        ]
        check_used([i for group in places for i in group], self.layout)

    def _take(self, node: Node, here: _Here) -> _Here:
        op = node.op
        match op:
            case ConvBlock():
                _, *params = node.inputs
                here = self._convolve(node, here, op.conv, params[:-2])
                here = self._normalise(node, here, params[-2:], op.eps)
                here = self._activate(node, here, op.activation)
                return self._pool(here, "max" if op.pool else "none")
            case Conv2d():
                return self._convolve(node, here, op, node.inputs[1:])
            case Add(scale=1) if all(slot in self.at for slot in node.inputs):
                return self._sum(node, [self.at[slot] for slot in node.inputs])
        if here.stage >= 0 and self.readers[node.inputs[0]] > 1:
            raise NotTaken(f"{_name(node)}: no kernel for {op.name} of what others read too, or of branches otherwise")
        match op:
            case Norm() if self._can(here, norm=True):
                return self._normalise(node, here, node.inputs[1:], self._eps(node, op))
            case Scale() if self._can(here) and here.frequency is None:
                return here._replace(frequency=op.factor)
            case Activation() if self._can(here):
                return self._activate(node, here, op)
            case Reshape():
                return self._reshape(node, here, op)
            case Linear():
                return self._linear(node, here)
            case MaxPool2d() | AvgPool2d() if op in _POOLS and self._can(here, activated=True):
                return self._pool(here, _POOLS[op])
            case Reduce(dims=(2, 3), mean=True) if len(here.shape) == 3:
                return self._global_mean(here, keep=op.keepdim)
            case AvgPool2d() if op == AvgPool2d(here.shape[1:], here.shape[1:], (0, 0), False, True, None):  # pyright: ignore[reportArgumentType]  # images have two sides
                return self._global_mean(here, keep=True)
        raise NotTaken(f"{_name(node)}: no kernel for {op.name} here")

    def _can(self, here: _Here, *, norm: bool = False, activated: bool = False) -> bool:
        """Whether an activation (a norm, a pool where `activated`) may come behind what there is."""
        if here.stage < 0 or (here.frequency is not None and activated):
            return False
        last = self.stages[here.stage]
        if isinstance(last, GlobalMean) or (norm and not isinstance(last, Block)):
            return False
        if isinstance(last, Layer):
            return last.kind == "identity" and not activated
        return (
            last.pool == "none"
            and (activated or last.kind == "identity")
            and not (norm and isinstance(last, Block) and last.eps is not None)
        )

    def _changed(self, here: _Here, **changes: object) -> _Here:
        """The stage, with more of it known."""
        stage = self.stages[here.stage] = self.stages[here.stage]._replace(**changes)  # pyright: ignore[reportArgumentType]  # the stage's own fields
        return _Here(here.stage, stage.out if isinstance(stage, Block | Sum) else here.shape)

    def _append(self, stage: Stage, shape: tuple[int, ...], *sources: _Here) -> _Here:
        self.stages.append(stage)
        self.sources.append(tuple(source.stage for source in sources))
        return _Here(len(self.stages) - 1, shape)

    def _param(self, node: Node, slot: int) -> int:
        if slot not in self.place:
            raise NotTaken(f"{_name(node)}: the kernels read trainable parameters only")
        return self.place[slot]

    def _convolve(self, node: Node, here: _Here, op: Conv2d, params: tuple[int, ...] | list[int]) -> _Here:
        if len(here.shape) != 3 or here.frequency is not None:
            raise NotTaken(f"{_name(node)}: no kernel for a convolution here")
        weight, *bias = (self._param(node, slot) for slot in params)
        filters, channels, *kernel = self.layout.shapes[weight]
        options = (
            ("kernel", tuple(kernel), KERNELS), ("stride", op.stride, STRIDES), ("dilation", op.dilation, (1,)),
            ("padding", op.padding, range(KERNELS[-1])), ("groups", (op.groups, op.groups), (1,)),
        )  # fmt: skip
        for name, (a, b), taken in options:
            if a != b or a not in taken:
                allowed = ", ".join(map(str, taken))
                given = a if name == "groups" else [a, b]
                raise NotTaken(f"{_name(node)}: convolution with {name} {given}, the kernels take {allowed} both ways")
        if max(filters, channels) > MOST_CHANNELS:
            raise NotTaken(f"{_name(node)}: {max(filters, channels)} channels, the kernels take up to {MOST_CHANNELS}")
        if here.stage < 0 and not all(SIDES[0] <= n <= SIDES[1] for n in here.shape[1:]):
            raise NotTaken(
                f"images of {here.shape[1]}×{here.shape[2]}, the kernels take {SIDES[0]} to {SIDES[1]} a side"
            )
        image = (channels, *here.shape[1:])
        block = Block(image, filters, kernel[0], op.stride[0], op.padding[0], weight, bias[0] if bias else None)  # pyright: ignore[reportArgumentType]
        return self._append(block, block.out, here)

    def _sum(self, node: Node, summands: list[_Here]) -> _Here:
        a, b = summands
        images = all(here.stage >= 0 and len(here.shape) == 3 and here.frequency is None for here in summands)
        if not images or a.shape != b.shape or a.stage == b.stage:
            raise NotTaken(f"{_name(node)}: the kernels add images of two convolutions, of one shape")
        return self._append(Sum(a.shape), a.shape, a, b)  # pyright: ignore[reportArgumentType]  # images

    def _eps(self, node: Node, op: Norm) -> float:
        if op.dims != _BATCH_NORM_DIMS:
            raise NotTaken(f"{_name(node)}: no kernel for this normalisation, batch norm alone has one")
        if op.fixed:
            raise NotTaken(f"{_name(node)}: no kernel for batch norm with running statistics; use train mode")
        assert op.rows == self.rows, "statistics are of all samples, or of those of the support set in front"
        return op.eps

    def _normalise(self, node: Node, here: _Here, params: tuple[int, ...] | list[int], eps: float) -> _Here:
        gamma, beta = (self._param(node, slot) for slot in params) if params else (None, None)
        return self._changed(here, eps=eps, gamma=gamma, beta=beta)

    def _activate(self, node: Node, here: _Here, op: Activation) -> _Here:
        return self._changed(here, kind=op.kind, args=arguments(op, _name(node), here.frequency))

    def _pool(self, here: _Here, pool: str) -> _Here:
        if pool != "none" and min(here.shape[1:]) < 2:
            raise NotTaken("a pool of images smaller than its window")
        return self._changed(here, pool=pool)

    def _global_mean(self, here: _Here, *, keep: bool) -> _Here:
        if here.stage < 0 or not isinstance(self.stages[here.stage], Block | Sum):
            raise NotTaken("a mean over positions must come behind a convolution")
        channels, height, width = here.shape
        return self._append(GlobalMean((channels, height, width)), (channels, 1, 1) if keep else (channels,), here)

    def _reshape(self, node: Node, here: _Here, op: Reshape) -> _Here:
        _, *shape = op.shape
        flat = len(shape) == 1 and shape[0] == prod(here.shape)
        if here.frequency is not None or not (flat or (here.stage < 0 and len(shape) == 3)):
            raise NotTaken(f"{_name(node)}: the kernels take a flatten before a linear layer, no other reshape")
        return here._replace(shape=tuple(shape))

    def _linear(self, node: Node, here: _Here) -> _Here:
        if len(here.shape) != 1 or here.frequency is not None:
            raise NotTaken(f"{_name(node)}: a linear layer must come behind a flatten")
        layer = linear_layer(node, self.place, self.layout)
        return self._append(layer, (layer.outputs,), here)


def _name(node: Node) -> str:
    return node.label or node.op.name
