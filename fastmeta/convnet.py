"""Whether a program is a convolutional network that the Triton kernels take, and its description for them."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from .engine import Engine
from .layout import Layout
from .ops.activation import Activation
from .ops.arithmetic import Scale
from .ops.conv2d import Conv2d
from .ops.conv_block import ConvBlock
from .ops.linear import Linear
from .ops.norm import Norm
from .ops.pool import AvgPool2d, MaxPool2d
from .ops.shape import Reduce, Reshape
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
from .plan import Node, Plan

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


class GlobalMean(NamedTuple):
    """Mean over the positions of images [C, H, W]."""

    image: tuple[int, int, int]


Stage = Layer | Block | GlobalMean


def has_convolutions(engine: Engine) -> bool:
    """Whether the program has any."""
    return any(isinstance(node.op, Conv2d | ConvBlock) for node in engine.outer.plan.nodes)


def convnet(engine: Engine, limits: Limits) -> list[Stage]:
    """The stages of the engine's program.

    Raises:
        NotTaken: it is no chain of convolutions with what is behind them, then linear layers, within the limits.
    """
    inner, outer = engine.loop.objective, engine.outer
    check_dtype(inner.layout)
    if outer.skip:
        raise NotTaken('bn_statistics="support": no kernel normalises by another batch\'s statistics; use "batch"')
    stages = _Chain(inner.plan, inner.layout, limits).stages
    if _Chain(outer.plan, outer.layout, limits).stages != stages:
        raise NotTaken("the query pass is another program than the inner loop's")
    check_loss(inner)
    for plan in (inner.plan, outer.plan):
        _check_size(stages, plan.input_shapes[0][0])
    return stages


def _check_size(stages: list[Stage], samples: int) -> None:
    widest = max(
        max(prod(s.image), prod(s._replace(pool="none").out)) for s in stages if isinstance(s, Block)
    )  # fmt: skip
    if samples * widest >= 2**31:
        raise NotTaken(f"{samples} samples a task, and the kernels count a layer's values in 32 bits")


class _Chain:
    """Goes over a plan's nodes and gathers its stages."""

    def __init__(self, plan: Plan, layout: Layout, limits: Limits) -> None:
        if len(plan.input_slots) != 1 or len(plan.output_slots) != 1:
            raise NotTaken("the kernels take modules of one input and one output tensor")
        self.place = {slot: i for i, slot in enumerate(plan.param_slots)}
        self.layout, self.limits = layout, limits
        self.stages: list[Stage] = []
        self.shape = plan.input_shapes[0][1:]  # of a sample
        self._frequency: float | None = None  # of a sine, where one must follow
        at = plan.input_slots[0]
        for node in plan.nodes:
            if node.inputs[0] != at:
                raise NotTaken(f"{_name(node)}: the kernels take chains, without branches")
            self._take(node)
            at = node.outputs[0]
        if at != plan.output_slots[0] or self._frequency is not None:
            raise NotTaken("the module returns something else than its last layer's output")
        self._check(plan)

    def _check(self, plan: Plan) -> None:
        if not self.stages or not isinstance(self.stages[-1], Layer):
            raise NotTaken("the last layer must be linear")
        check_layers([s for s in self.stages if isinstance(s, Layer)], plan, self.limits)
        for stage in self.stages:
            if isinstance(stage, Block) and stage.kind not in self.limits.kinds:
                raise NotTaken(f"no kernel for the activation {stage.kind}")
        places = [
            (s.weight, s.bias) if isinstance(s, Layer) else (s.weight, s.bias, s.gamma, s.beta)
            for s in self.stages
            if not isinstance(s, GlobalMean)
        ]
        check_used([i for group in places for i in group], self.layout)

    def _take(self, node: Node) -> None:
        op = node.op
        match op:
            case ConvBlock():
                _, *params = node.inputs
                self._convolve(node, op.conv, params[:-2])
                self._normalise(node, params[-2:], op.eps)
                self._activate(node, op.activation)
                self._pool("max" if op.pool else "none")
            case Conv2d():
                self._convolve(node, op, node.inputs[1:])
            case Norm() if self._can(norm=True):
                self._normalise(node, node.inputs[1:], self._eps(node, op))
            case Scale() if self._can() and self._frequency is None:
                self._frequency = op.factor
            case Activation() if self._can():
                self._activate(node, op)
            case Reshape():
                self._reshape(node, op)
            case Linear():
                self._linear(node)
            case MaxPool2d() | AvgPool2d() if op in _POOLS and self._can(activated=True):
                self._pool(_POOLS[op])
            case Reduce(dims=(2, 3), mean=True) if len(self.shape) == 3:
                self._global_mean(keep=op.keepdim)
            case AvgPool2d() if op == AvgPool2d(self.shape[1:], self.shape[1:], (0, 0), False, True, None):  # pyright: ignore[reportArgumentType]  # images have two sides
                self._global_mean(keep=True)
            case _:
                raise NotTaken(f"{_name(node)}: no kernel for {op.name} here")

    def _can(self, *, norm: bool = False, activated: bool = False) -> bool:
        """Whether an activation (a norm, a pool where `activated`) may come behind what there is."""
        if not self.stages or isinstance(self.stages[-1], GlobalMean):
            return False
        last = self.stages[-1]
        if isinstance(last, Layer):
            return last.kind == "identity" and not norm and not activated
        return last.pool == "none" and (activated or last.kind == "identity") and not (norm and last.eps is not None)

    def _last(self, **changes: object) -> None:
        self.stages[-1] = self.stages[-1]._replace(**changes)  # pyright: ignore[reportArgumentType]  # the stage's own fields
        last = self.stages[-1]
        if isinstance(last, Block):
            self.shape = last.out

    def _param(self, node: Node, slot: int) -> int:
        if slot not in self.place:
            raise NotTaken(f"{_name(node)}: the kernels read trainable parameters only")
        return self.place[slot]

    def _convolve(self, node: Node, op: Conv2d, params: tuple[int, ...] | list[int]) -> None:
        if len(self.shape) != 3 or self._frequency is not None:
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
        if not self.stages and not all(SIDES[0] <= n <= SIDES[1] for n in self.shape[1:]):
            raise NotTaken(
                f"images of {self.shape[1]}×{self.shape[2]}, the kernels take {SIDES[0]} to {SIDES[1]} a side"
            )
        image = (channels, *self.shape[1:])
        self.stages.append(
            Block(image, filters, kernel[0], op.stride[0], op.padding[0], weight, bias[0] if bias else None)  # pyright: ignore[reportArgumentType]
        )
        self._last()

    def _eps(self, node: Node, op: Norm) -> float:
        if op.dims != _BATCH_NORM_DIMS or op.rows is not None:
            raise NotTaken(f"{_name(node)}: no kernel for this normalisation, batch norm alone has one")
        if op.fixed:
            raise NotTaken(f"{_name(node)}: no kernel for batch norm with running statistics; use train mode")
        return op.eps

    def _normalise(self, node: Node, params: tuple[int, ...] | list[int], eps: float) -> None:
        gamma, beta = (self._param(node, slot) for slot in params) if params else (None, None)
        self._last(eps=eps, gamma=gamma, beta=beta)

    def _activate(self, node: Node, op: Activation) -> None:
        self._last(kind=op.kind, args=arguments(op, _name(node), self._frequency))
        self._frequency = None

    def _pool(self, pool: str) -> None:
        if pool != "none" and min(self.shape[1:]) < 2:
            raise NotTaken("a pool of images smaller than its window")
        self._last(pool=pool)

    def _global_mean(self, *, keep: bool) -> None:
        if not self.stages or not isinstance(self.stages[-1], Block):
            raise NotTaken("a mean over positions must come behind a convolution")
        image = self.stages[-1].out
        self.stages.append(GlobalMean(image))
        self.shape = (image[0], 1, 1) if keep else image[:1]

    def _reshape(self, node: Node, op: Reshape) -> None:
        _, *shape = op.shape
        flat = len(shape) == 1 and shape[0] == prod(self.shape)
        if self._frequency is not None or not (flat or (not self.stages and len(shape) == 3)):
            raise NotTaken(f"{_name(node)}: the kernels take a flatten before a linear layer, no other reshape")
        self.shape = tuple(shape)

    def _linear(self, node: Node) -> None:
        if len(self.shape) != 1 or self._frequency is not None:
            raise NotTaken(f"{_name(node)}: a linear layer must come behind a flatten")
        self.stages.append(linear_layer(node, self.place, self.layout))
        self.shape = (self.layout.shapes[self.place[node.inputs[1]]][0],)


def _name(node: Node) -> str:
    return node.label or node.op.name
