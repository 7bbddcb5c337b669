"""Clipping of inner gradients by their norm, task by task, as `torch.nn.utils.clip_grad_norm_` does, and its vjp.

g' = s g with s = min(1, c / (‖g‖ + 1e-6)); where s < 1, its derivative is ∂s/∂g = −s / (‖g‖ + 1e-6) · g / ‖g‖.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_


def _scale(g: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Norm and factor of each task, [T, 1]."""
    norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    return norm, (most / (norm + _EPS)).clamp(max=1.0)


def clipped(g: Tensor, most: float) -> Tensor:
    """Each task's gradient [T, P], no longer than `most`."""
    return g * _scale(g, most)[1]


def clipped_vjp(g: Tensor, most: float, a: Tensor) -> Tensor:
    """The cotangent of g, `a` being that of `clipped(g, most)`."""
    norm, scale = _scale(g, most)
    # a gradient of zero is not clipped; the division must not see it all the same
    bend = scale * (g * a).sum(1, keepdim=True) / ((norm + _EPS) * torch.where(norm > 0, norm, 1.0))
    return scale * a - torch.where(scale < 1.0, bend, 0.0) * g
