"""Einstein sums of two tensors, x [T, ...] and w [T, ...]: each index in one of them once at most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Bilinear

_TASK = "Z"  # lowering keeps this letter for the tasks


@dataclass(frozen=True)
class Einsum(Bilinear):
    """Σ x w over the letters that `y` lacks; `x`, `w` and `y` name the dimensions of one task, a letter each."""

    x: str
    w: str
    y: str

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        return _einsum(self.x, self.w, self.y, x, w)

    def product_backward(
        self, dy: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        dx = _along(self.y, self.w, self.x, dy, w, x) if need_x else None
        dw = _along(self.y, self.x, self.w, dy, x, w) if need_w else None
        return dx, dw


def _einsum(a: str, b: str, y: str, of_a: Tensor, of_b: Tensor) -> Tensor:
    return torch.einsum(f"{_TASK}{a},{_TASK}{b}->{_TASK}{y}", of_a, of_b)


def _along(y: str, other: str, own: str, dy: Tensor, factor: Tensor, like: Tensor) -> Tensor:
    """The cotangent of the factor `own`. A letter that it has alone was summed over, so its cotangent is the same all
    along it."""
    known = "".join(letter for letter in own if letter in y or letter in other)
    d = _einsum(y, other, known, dy, factor)
    if known == own:
        return d
    for i, letter in enumerate(own):
        if letter not in known:
            d = d.unsqueeze(i + 1)
    return d.expand(like.shape)
