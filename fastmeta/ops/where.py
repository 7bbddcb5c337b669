"""Choices between two values: where(condition, a, b), maximum and minimum, with broadcasting inside a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .arithmetic import align, unbroadcast
from .base import MaybeTensors, Needs, Op, Shape

Branch: TypeAlias = Any  # a tensor or a plain number, of which torch.where takes each combination
_where: Callable[[Tensor, Branch, Branch], Tensor] = torch.where


class Chosen(NamedTuple):
    """What a forward sweep leaves."""

    condition: Tensor  # [T, ...], of the output's rank
    shapes: tuple[Shape, ...]  # of all inputs
    shape: Shape  # of the output


@dataclass(frozen=True)
class Where(Op[Chosen, None]):
    """Inputs: the condition (bool), then a and b, of which one or both may be plain numbers, of `dtype` if both are."""

    a: float | None = None
    b: float | None = None
    dtype: torch.dtype | None = None

    def _choose(self, condition: Tensor, branches: tuple[Branch, ...]) -> Tensor:
        a, b = branches
        if self.dtype is not None:  # of two plain numbers `where` would make float32
            a = torch.tensor(a, dtype=self.dtype, device=condition.device)
        return _where(condition, a, b)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Chosen]:
        ndim = max(x.dim() for x in inputs)
        condition, *tensors = (align(x, ndim) for x in inputs)
        rest = iter(tensors)
        y = self._choose(condition, tuple(next(rest) if v is None else v for v in (self.a, self.b)))
        return y, Chosen(condition, tuple(tuple(x.shape) for x in inputs), tuple(y.shape))

    @property
    def _places(self) -> list[bool]:
        """Of each tensor among the branches: is it a."""
        return [is_a for is_a, v in ((True, self.a), (False, self.b)) if v is None]

    def backward(self, saved: Chosen, dy: Tensor, needs: Needs) -> MaybeTensors:
        ds: list[Tensor | None] = [None]
        for is_a, need, shape in zip(self._places, needs[1:], saved.shapes[1:], strict=True):
            d = _where(saved.condition, *((dy, 0.0) if is_a else (0.0, dy))) if need else None
            ds.append(None if d is None else unbroadcast(d, shape))
        return tuple(ds)

    def forward_dot(self, saved: Chosen, inputs_dot: MaybeTensors) -> tuple[Tensor, None]:
        ndim = len(saved.shape)
        dots: dict[bool, Branch] = {
            is_a: align(d, ndim) for is_a, d in zip(self._places, inputs_dot[1:], strict=True) if d is not None
        }
        assert dots, "an op without any tangent is not swept"
        return _where(saved.condition, dots.get(True, 0.0), dots.get(False, 0.0)).expand(saved.shape), None

    def backward_dot(self, saved: Chosen, saved_dot: None, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        return self.backward(saved, dy_dot, needs)


class Weights(NamedTuple):
    """What a forward sweep leaves: the slopes of both inputs, as the output, and the inputs' shapes."""

    a: Tensor
    b: Tensor
    shapes: tuple[Shape, Shape]


@dataclass(frozen=True)
class Extremum(Op[Weights, None]):
    """maximum(a, b), or minimum(a, b). Equal values share the cotangent, as PyTorch has it."""

    largest: bool

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Weights]:
        ndim = max(x.dim() for x in inputs)
        a, b = (align(x, ndim) for x in inputs)
        y = torch.maximum(a, b) if self.largest else torch.minimum(a, b)
        better, worse = (a > b, a < b) if self.largest else (a < b, a > b)
        half = torch.where(a == b, 0.5, 1.0).to(y.dtype)
        shapes = tuple(inputs[0].shape), tuple(inputs[1].shape)
        return y, Weights(half.masked_fill(worse, 0.0), half.masked_fill(better, 0.0), shapes)

    def backward(self, saved: Weights, dy: Tensor, needs: Needs) -> MaybeTensors:
        return tuple(
            unbroadcast(dy * slope, shape) if need else None
            for slope, shape, need in zip((saved.a, saved.b), saved.shapes, needs, strict=True)
        )

    def forward_dot(self, saved: Weights, inputs_dot: MaybeTensors) -> tuple[Tensor, None]:
        terms = [
            align(d, slope.dim()) * slope
            for d, slope in zip(inputs_dot, (saved.a, saved.b), strict=True)
            if d is not None
        ]
        assert terms, "an op without any tangent is not swept"
        return (terms[0] if len(terms) == 1 else terms[0] + terms[1]), None

    def backward_dot(self, saved: Weights, saved_dot: None, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        return self.backward(saved, dy_dot, needs)
