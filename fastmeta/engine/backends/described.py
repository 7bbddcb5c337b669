"""What the Triton kernels are told of a program: network, loss, inner rule, and the order of their parameters."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from fastmeta.kernels import description  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]  # mapped by setup.py
from fastmeta.kernels.activation import KINDS  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.kernels.description import Chain, InnerRule, LossRule  # pyright: ignore[reportMissingImports]  # mapped by setup.py
from fastmeta.ops.base import Loss
from fastmeta.ops.cross_entropy import CrossEntropy
from fastmeta.optim.base import InnerRule as Rule
from fastmeta.program.layout import Layout

from .convnet import Block, GlobalMean, Graph, Stage, Sum
from .perceptron import Layer


def chain_of(layers: list[Layer], layout: Layout) -> Chain:
    """The kernels' description of a perceptron."""
    args: list[float] = []
    for layer in layers:
        args += [*layer.args, 0.0, 0.0][:2]
    return Chain(
        (layers[0].inputs, *(layer.outputs for layer in layers)),
        tuple(layout.offsets[layer.weight] for layer in layers),
        tuple(-1 if layer.bias is None else layout.offsets[layer.bias] for layer in layers),
        tuple(KINDS.index(layer.kind) for layer in layers),
        tuple(map(float, args)),
        layout.size,
    )


def network_of(graph: Graph, layout: Layout) -> description.Network:
    """The kernels' description of a network."""

    def at(place: int | None) -> int:
        return -1 if place is None else layout.offsets[place]

    def described(s: Stage) -> description.Stage:
        if isinstance(s, GlobalMean):
            channels, *sides = s.image
            return description.GlobalMean(prod(sides), channels)
        act = description.Act(KINDS.index(s.kind), *map(float, [*s.args, 0.0, 0.0][:2]))
        if isinstance(s, Layer):
            return description.Linear(s.inputs, s.outputs, at(s.weight), at(s.bias), act)
        channels, height, width = s.image
        if isinstance(s, Sum):
            return description.Sum(height, width, channels, act, s.pool)
        return description.Conv(
            height, width, channels, s.filters, s.kernel, s.stride, s.padding, at(s.weight), at(s.bias),
            s.eps is not None, s.eps or 0.0, at(s.gamma), at(s.beta), act, s.pool,
        )  # fmt: skip

    return description.Network(tuple(map(described, graph.stages)), tuple(graph.sources), layout.size)


def order_of(graph: Graph, layout: Layout) -> Tensor:
    """Where each of the kernels' P values lies in the layout [P].

    Convolutions' weights are [O, C, kernel, kernel] there and [O, kernel, kernel, C] here; the columns of a linear
    layer that sees flattened images are [C, H, W] there and [H, W, C] here.
    """
    order = torch.arange(layout.size)
    for stage, (source, *_) in zip(graph.stages, graph.sources, strict=True):
        if isinstance(stage, Block):
            shape = (stage.filters, stage.image[0], stage.kernel**2)
        elif isinstance(stage, Layer) and isinstance(below := graph.stages[source], Block | Sum):
            channels, height, width = below.out
            shape = (stage.outputs, channels, height * width)
        else:
            continue
        at = layout.offsets[stage.weight]
        piece = order[at : at + prod(shape)]
        piece.copy_(piece.clone().view(shape).transpose(1, 2).reshape(-1))
    return order.to(layout.device)


def inner_rule(rule: Rule, steps: int, batch: int | None) -> InnerRule:
    """K steps of a rule that the kernels have, on `batch` samples each."""
    known = rule.in_kernels()
    assert not isinstance(known, str), "a rule that the kernels do not have is not taken"
    return InnerRule(known.name, known.hyper, steps, batch)


def loss_rule(loss: Loss | None) -> LossRule:
    """Cross-entropy, or mean squared error."""
    if isinstance(loss, CrossEntropy):
        return LossRule("cross_entropy", loss.label_smoothing, loss.ignore_index)
    return LossRule("mse")
