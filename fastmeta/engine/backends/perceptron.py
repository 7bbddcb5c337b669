"""Whether a program is a multilayer perceptron that the Triton kernels take, and its description for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastmeta.engine.meta_step import Engine
from fastmeta.engine.objective import Objective
from fastmeta.ops.activation import Activation
from fastmeta.ops.arithmetic import Scale
from fastmeta.ops.cross_entropy import CrossEntropy
from fastmeta.ops.linear import Linear
from fastmeta.ops.mse import MSE
from fastmeta.ops.shape import Reshape
from fastmeta.program.layout import Layout
from fastmeta.program.plan import Node, Plan


class Limits(NamedTuple):
    """What the kernels take."""

    kinds: Sequence[str]  # activations
    outputs: int  # of the last layer


class NotTaken(Exception):
    """No kernel takes the program; the message names the op, the limit and what to do."""


class Layer(NamedTuple):
    """y = f(x Wᵀ + b): widths, places of weight and bias in the layout (None: no bias), and f with its arguments."""

    inputs: int
    outputs: int
    weight: int
    bias: int | None
    kind: str = "identity"
    args: tuple[float, ...] = ()


def perceptron(engine: Engine, limits: Limits) -> list[Layer]:
    """The layers of the engine's program.

    Raises:
        NotTaken: it is no chain of linear layers and activations within the kernels' limits.
    """
    inner, outer = engine.loop.objective, engine.outer
    check_dtype(inner.layout)
    if outer.skip:
        raise NotTaken('bn_statistics="support" has nothing to act on in a perceptron; use "batch"')
    layers = _layers(inner.plan, inner.layout)
    check_used([i for layer in layers for i in (layer.weight, layer.bias)], inner.layout)
    check_layers(layers, inner.plan, limits)
    if _layers(outer.plan, outer.layout) != layers:
        raise NotTaken("the query pass is another program than the inner loop's")
    check_loss(inner)
    samples = max(plan.output_shapes[0][0] for plan in (inner.plan, outer.plan))
    if samples * max(max(layer.inputs, layer.outputs) for layer in layers) >= 2**31:
        raise NotTaken(f"{samples} samples a task, and the kernels count a layer's values in 32 bits")
    return layers


def check_dtype(layout: Layout) -> None:
    """Raises NotTaken where parameters are not float32."""
    if layout.dtype != torch.float32:
        raise NotTaken(f"kernels take float32 parameters, these are {str(layout.dtype).removeprefix('torch.')}")


def check_loss(objective: Objective) -> None:
    """Raises NotTaken where no kernel has the inner loss."""
    if not isinstance(objective.loss, MSE | CrossEntropy):
        kind = type(objective.loss).__name__
        raise NotTaken(f"the inner loss is {kind}, the kernels have cross-entropy and mean squared error")
    if len(objective.plan.output_shapes[0]) != 2:
        raise NotTaken(f"outputs of shape {list(objective.plan.output_shapes[0])} a task, the kernels give [N, C]")


def _layers(plan: Plan, layout: Layout) -> list[Layer]:
    if len(plan.input_slots) != 1 or len(plan.output_slots) != 1:
        raise NotTaken("the kernels take modules of one input and one output tensor")
    if plan.constant_slots:
        raise NotTaken("the module has frozen parameters or buffers, which the kernels do not read")
    place = {slot: i for i, slot in enumerate(plan.param_slots)}
    at = plan.input_slots[0]
    nodes = list(plan.nodes)
    if nodes and isinstance(nodes[0].op, Reshape) and nodes[0].inputs == (at,):
        at = nodes.pop(0).outputs[0]  # images as rows, which the kernels read anyway
    layers: list[Layer] = []
    frequency: float | None = None  # of a sine, where one must follow
    for node in nodes:
        if node.inputs[0] != at:
            raise NotTaken(f"{node.label or node.op.name}: the kernels take chains, without branches")
        if isinstance(node.op, Linear) and frequency is None:
            layers.append(linear_layer(node, place, layout))
        elif isinstance(node.op, Scale) and layers and layers[-1].kind == "identity" and frequency is None:
            frequency = node.op.factor
        elif isinstance(node.op, Activation) and layers and layers[-1].kind == "identity":
            layers[-1] = layers[-1]._replace(
                kind=node.op.kind, args=arguments(node.op, node.label or node.op.name, frequency)
            )
            frequency = None
        else:
            raise NotTaken(f"{node.label or node.op.name}: no kernel for {node.op.name} here")
        at = node.outputs[0]
    if at != plan.output_slots[0] or frequency is not None:
        raise NotTaken("the module returns something else than its last layer's output")
    return layers


def linear_layer(node: Node, place: dict[int, int], layout: Layout) -> Layer:
    """The layer of a linear node. `place` says which parameter is in a slot."""
    _, w, *b = node.inputs
    if any(slot not in place for slot in (w, *b)):
        raise NotTaken(f"{node.label}: its weight is computed, and the kernels read parameters only")
    outputs, inputs = layout.shapes[place[w]]
    return Layer(inputs, outputs, place[w], place[b[0]] if b else None)


def arguments(op: Activation, name: str, frequency: float | None) -> tuple[float, ...]:
    """Of an activation behind a product with a number, where there is one: sin(30 x) is what SIREN has."""
    if op.kind == "sin":
        return (1.0 if frequency is None else frequency,)
    if frequency is not None:
        raise NotTaken(f"{name}: no kernel for {op.kind} of a multiple")
    return op.args


def check_used(used: list[int | None], layout: Layout) -> None:
    """Raises NotTaken where a parameter is used by no layer, or by several."""
    if sorted(i for i in used if i is not None) != list(range(len(layout.names))):
        raise NotTaken("every parameter must belong to one layer, and to one only")


def check_layers(layers: list[Layer], plan: Plan, limits: Limits) -> None:
    """Raises NotTaken where linear layers are beyond the limits, or the last one's outputs not the network's."""
    if not layers:
        raise NotTaken("there is no linear layer")
    if layers[-1].outputs > limits.outputs:
        raise NotTaken(f"{layers[-1].outputs} outputs, the kernels take up to {limits.outputs}")
    for layer in layers:
        if layer.kind not in limits.kinds:
            raise NotTaken(f"no kernel for the activation {layer.kind}")
    if plan.output_shapes[0] != (plan.output_shapes[0][0], layers[-1].outputs):
        raise NotTaken(f"outputs of shape {list(plan.output_shapes[0])} a task, the kernels give [N, C]")
