"""How many floating-point operations a meta-step cannot do without: one model for every workload and peer.

A multiply-add counts as two operations; only matrix products and convolutions count. For a layer whose
forward pass takes F operations a sample:

| pass | every layer | but the first, whose input needs no gradient |
| --- | --- | --- |
| gradient: forward, input gradient, weight gradient | 3F | 2F |
| Hessian-vector product: the tangents of those three, two products each | 6F | 2F |

The Hessian-vector product finds the gradient's values kept. In the first layer the input has no tangent
either, which leaves one product forward and one for the weights.

First-order MAML takes T(KN + M) gradients, MAML as many and TKN Hessian-vector products on top. Elementwise
work, batch norm, pooling and memory traffic are left out, so the time this gives at the machine's rate of
matrix products is a floor.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from bench.workloads import Workload


def forward_flop(workload: Workload) -> list[int]:
    """F of each layer with weights, in order, for one sample."""
    counts: list[int] = []

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        outputs_per_weight = output.numel() // output.shape[1]  # a convolution's weights serve every pixel
        weights = sum(p.numel() for name, p in layer.named_parameters() if name == "weight")
        counts.append(2 * weights * outputs_per_weight)

    model = workload.model()
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *workload.sample_shape))
    return counts


def meta_step_flop(workload: Workload, *, first_order: bool) -> int:
    """Operations of one meta-step over all tasks."""
    first, *rest = forward_flop(workload)
    gradient = 2 * first + 3 * sum(rest)
    hvp = 2 * first + 6 * sum(rest)
    gradients = workload.steps * workload.support + workload.query
    hvps = 0 if first_order else workload.steps * workload.support
    return workload.tasks * (gradients * gradient + hvps * hvp)


def matrix_product_rate(size: int = 1536, repeats: int = 8) -> float:
    """This machine's float32 operations a second: the best of a few square matrix products in torch."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
