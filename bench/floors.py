"""What a meta-step cannot do without: operations and bytes, by one model for every workload and peer.

Operations: a multiply-add counts as two; only matrix products and convolutions count. For a layer whose
forward pass takes F operations a sample:

| pass | every layer | but the first, whose input needs no gradient |
| --- | --- | --- |
| gradient: forward, input gradient, weight gradient | 3F | 2F |
| Hessian-vector product: the tangents of those three, two products each | 6F | 2F |

The Hessian-vector product finds the gradient's values kept. In the first layer the input has no tangent
either, which leaves one product forward and one for the weights.

| algorithm | gradients | Hessian-vector products |
| --- | --- | --- |
| MAML | T(KN + M) | TKN |
| first-order MAML | T(KN + M) | |
| Reptile | TKN | |

Bytes: support and query data (labels 8 bytes) read once, θ read once, the meta-gradient written once. Fast weights,
trajectory and activations count as kept on the chip: a kernel could.

The floor is the longer of the operations at the machine's rate of matrix products and the bytes at its rate of
copying (`ceilings.py`). Elementwise work, batch norm and pooling are left out.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .workloads import Workload


def forward_flop(workload: Workload) -> list[int]:
    """F of each layer with trainable weights, in order, for one sample."""
    counts: list[int] = []

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        channels = output.shape[1 if isinstance(layer, nn.Conv2d) else -1]
        outputs_per_weight = output.numel() // channels  # a convolution's weights serve every pixel
        weights = sum(p.numel() for name, p in layer.named_parameters() if name == "weight")
        counts.append(2 * weights * outputs_per_weight)

    model = workload.model()
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.requires_grad:
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *workload.sample_shape, dtype=torch.int64 if workload.words else torch.float32))
    return counts


def meta_step_flop(workload: Workload, algorithm: str) -> int:
    """Operations of one meta-step over all tasks."""
    first, *rest = forward_flop(workload)
    gradient = 2 * first + 3 * sum(rest)
    hvp = 2 * first + 6 * sum(rest)
    inner = workload.steps * workload.support
    gradients = inner + (0 if algorithm == "reptile" else workload.query)
    return workload.tasks * (gradients * gradient + (inner if algorithm == "maml" else 0) * hvp)


def meta_step_bytes(workload: Workload, algorithm: str) -> int:
    """Bytes that one meta-step reads and writes at least; values of four bytes."""
    target = 8 if workload.loss == "cross_entropy" else 4 * workload.outputs
    samples = workload.support + (0 if algorithm == "reptile" else workload.query)
    data = workload.tasks * samples * ((8 if workload.words else 4) * prod(workload.sample_shape) + target)
    return data + 4 * sum(p.numel() * (2 if p.requires_grad else 1) for p in workload.model().parameters())


class FusedBytes(NamedTuple):
    """Bytes that one image takes through memory in a gradient, and in a Hessian-vector product."""

    gradient: int
    hessian_product: int


def fused_bytes(workload: Workload, precision: str = "float32") -> FusedBytes:
    """The least that a scheme of fused layers moves for an image of a convolutional network.

    It stores nothing twice, and computes the first block again from the image. Z' are the convolutions' outputs of all
    blocks but the first, P the blocks' own, behind their pools, X is the image: a gradient takes 4Z' + 6P + 5X values,
    a Hessian-vector product 7Z' + 10P + 8X, of two bytes under "bfloat16" and else of four.
    """
    convolved: list[int] = []
    pooled: list[int] = []
    x, model = torch.zeros(1, *workload.sample_shape), workload.model()
    assert isinstance(model, nn.Sequential), "blocks of layers, one behind another"
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                convolved.append(x.numel())
                pooled.append(x.numel())
            elif isinstance(layer, nn.MaxPool2d):
                pooled[-1] = x.numel()
    z, p, image = sum(convolved[1:]), sum(pooled), prod(workload.sample_shape)
    size = 2 if precision == "bfloat16" else 4
    return FusedBytes(size * (4 * z + 6 * p + 5 * image), size * (7 * z + 10 * p + 8 * image))


def floor_ms(flop: int, bytes_: int, ceilings: dict[str, float], precision: str = "float32") -> float:
    """Milliseconds that a meta-step takes at least, from what `ceilings.measure` gives."""
    by_flop = flop / ceilings[precision] / 1e6
    return max(by_flop, bytes_ / ceilings["copy"] / 1e6) if "copy" in ceilings else by_flop
