"""Non-overlapping 2×2 windows of z [T, N, H, W, C]: the maximum, and the linear maps between windows and elements.

Each function has two forms. PyTorch's pooling is the fast one where ops run one by one; compiled code fuses plain
slices with what surrounds them, and is slow with PyTorch's indices (553 ms against 195 for a Conv4 meta-step). Which
form a `winner` belongs to shows in its dtype, and both pick the first of equal elements.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.internals import get_proxy_mode

_aten = torch.ops.aten
_WINDOW = ((2, 2), (2, 2))  # kernel, stride


def pool(z: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Which element of each window is the first maximum of sign · z (sign [T, 1, 1, 1, C]), and its z.

    A NaN wins, as in PyTorch. An odd last row or column belongs to no window.
    """
    if get_proxy_mode() is not None:
        winner = _pool_slices(z, sign)
        return winner, gather(z, winner)
    positive = z.device.type == "cpu" and bool((sign > 0).all())
    best, winner = _aten.max_pool2d_with_indices(_planes(z if positive else z * sign), *_WINDOW)
    if positive:
        return winner, _rows(best, z)
    picked = _rows(best, z) * sign
    # sign 0 (γ = 0) makes all elements equal: the first one wins, and its z is what counts. Asking whether there is
    # one would make a GPU wait.
    simple = z.device.type == "cpu" and bool((sign != 0).all())
    return winner, picked if simple else gather(z, winner)


def gather(z: Tensor, winner: Tensor) -> Tensor:
    """The winners' z [T, N, H/2, W/2, C]."""
    if winner.dtype == torch.int64:
        return _rows(_planes(z).flatten(2).gather(2, winner.flatten(2)).view(winner.shape), z)
    corners = _corners(z)
    picked = corners[0]
    for i, corner in enumerate(corners[1:], 1):
        picked = torch.where(winner == float(i), corner, picked)
    return picked


def scatter(g: Tensor, winner: Tensor, z: Tensor) -> Tensor:
    """The transpose of `gather`: g at the winners, zero elsewhere, in the shape of z."""
    if winner.dtype == torch.int64:
        wide = _aten.max_pool2d_with_indices_backward(_planes(g), _planes(z), *_WINDOW, (0, 0), (1, 1), False, winner)
        return _rows(wide, z)
    corner = torch.arange(4, dtype=g.dtype, device=g.device).view(2, 1, 2, 1)
    wide = torch.where(winner[:, :, :, None, :, None] == corner, g[:, :, :, None, :, None], 0.0)
    wide = wide.flatten(2, 3).flatten(3, 4)
    return F.pad(wide, (0, 0, 0, z.shape[3] - wide.shape[3], 0, z.shape[2] - wide.shape[2]))


def _planes(x: Tensor) -> Tensor:
    """[T, N, H, W, C] as the images [T·N, C, H, W] that PyTorch's pooling takes, in the same memory."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def _rows(planes: Tensor, like: Tensor) -> Tensor:
    return planes.permute(0, 2, 3, 1).unflatten(0, like.shape[:2])


def _corners(z: Tensor) -> list[Tensor]:
    """The four elements of every window, row-major."""
    h, w = z.shape[2] // 2 * 2, z.shape[3] // 2 * 2
    return [z[:, :, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]


def _pool_slices(z: Tensor, sign: Tensor) -> Tensor:
    """The number of each window's winner, as a float like z: bytes beside floats break the vectors of compiled code."""
    corners = _corners(z)
    best, winner = corners[0] * sign, torch.zeros_like(corners[0])
    for i, corner in enumerate(corners[1:], 1):
        value = corner * sign
        better = (value > best) | (value != value)  # noqa: PLR0124  isnan() is compiled element by element
        best = torch.where(better, value, best)
        winner = torch.where(better, float(i), winner)
    return winner
