"""Ops that move elements without changing them, and means: reshape, permute, select, concatenate, mean.

Shapes, dimensions and indices are those of one task; the task dimension stays in front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import LinearMap, MaybeTensors, Needs, Op, Shape


@dataclass(frozen=True)
class Reshape(LinearMap):
    """view, reshape, flatten, squeeze, unsqueeze."""

    shape: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)

    def transpose(self, shape: tuple[int, ...], dy: Tensor) -> Tensor:
        return dy.reshape(shape)


@dataclass(frozen=True)
class Permute(LinearMap):
    """permute, transpose, t."""

    dims: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        return x.permute(0, *(d + 1 for d in self.dims))

    def transpose(self, shape: tuple[int, ...], dy: Tensor) -> Tensor:
        inverse = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        return dy.permute(0, *(d + 1 for d in inverse))


@dataclass(frozen=True)
class Select(LinearMap):
    """Basic indexing with integers, slices, None and Ellipsis: x[index], chunk, split, select, narrow."""

    index: tuple[Any, ...]

    def apply(self, x: Tensor) -> Tensor:
        return x[(slice(None), *self.index)]

    def transpose(self, shape: tuple[int, ...], dy: Tensor) -> Tensor:
        dx = dy.new_zeros(shape)
        dx[(slice(None), *self.index)] = dy
        return dx


@dataclass(frozen=True)
class Reduce(LinearMap):
    """Sum or mean over `dims`."""

    dims: tuple[int, ...]
    keepdim: bool
    mean: bool

    def apply(self, x: Tensor) -> Tensor:
        dims = [d + 1 for d in self.dims]
        return x.mean(dims, keepdim=self.keepdim) if self.mean else x.sum(dims, keepdim=self.keepdim)

    def transpose(self, shape: tuple[int, ...], dy: Tensor) -> Tensor:
        if not self.keepdim:
            for d in sorted(self.dims):
                dy = dy.unsqueeze(d + 1)
        if self.mean:
            dy = dy / math.prod(shape[d + 1] for d in self.dims)
        return dy.expand(shape)


@dataclass(frozen=True)
class Concatenate(Op[tuple[Shape, ...], None]):
    """cat along `dim`."""

    dim: int

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Shape, ...]]:
        return torch.cat(inputs, self.dim + 1), tuple(tuple(x.shape) for x in inputs)

    def backward(self, saved: tuple[Shape, ...], dy: Tensor, needs: Needs) -> MaybeTensors:
        parts = dy.split([shape[self.dim + 1] for shape in saved], self.dim + 1)
        return tuple(part if need else None for part, need in zip(parts, needs, strict=True))

    def forward_dot(self, saved: tuple[Shape, ...], inputs_dot: MaybeTensors) -> tuple[Tensor, None]:
        some = next(d for d in inputs_dot if d is not None)
        parts = [some.new_zeros(shape) if d is None else d for d, shape in zip(inputs_dot, saved, strict=True)]
        return torch.cat(parts, self.dim + 1), None

    def backward_dot(
        self, saved: tuple[Shape, ...], saved_dot: None, dy: Tensor, dy_dot: Tensor, needs: Needs
    ) -> MaybeTensors:
        return self.backward(saved, dy_dot, needs)
