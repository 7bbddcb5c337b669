"""Selection by tensors of indices: x [T, ...] and for some of its dimensions an index [T, ...] each, int64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import MaybeTensors, Needs, Op, Shape, shared


class Selected(NamedTuple):
    """What a forward sweep leaves: where an element of x, its indexed dimensions in front, comes from; x's shape."""

    places: tuple[Tensor | slice, ...]
    shape: Shape


@dataclass(frozen=True)
class Index(Op[Selected, Selected]):
    """x[:, i, j]: PyTorch's advanced indexing, with a tensor for each of `dims`, which broadcast inside a task.

    `at` is where the indices' own dimensions stand in the result.
    """

    dims: tuple[int, ...]
    at: int

    def _front(self, x: Tensor) -> Tensor:
        return x.movedim([d + 1 for d in self.dims], list(range(1, len(self.dims) + 1)))

    def _take(self, x: Tensor, saved: Selected) -> Tensor:
        picked = self._front(x)[saved.places]
        wide = picked.dim() - (x.dim() - len(self.dims))  # dimensions of the indices
        return picked.movedim(list(range(1, wide + 1)), list(range(self.at + 1, self.at + wide + 1)))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Selected]:
        x, *indices = inputs
        places: tuple[Tensor | slice, ...]
        if all(shared(i) or i.shape[0] == 1 for i in indices):
            places = (slice(None), *(i[0] for i in indices))
        else:
            wide = max(i.dim() for i in indices)
            tasks = torch.arange(x.shape[0], device=x.device).view(-1, *(1,) * (wide - 1))
            places = (tasks, *(i.reshape(i.shape[0], *(1,) * (wide - i.dim()), *i.shape[1:]) for i in indices))
        saved = Selected(places, tuple(x.shape))
        return self._take(x, saved), saved

    def backward(self, saved: Selected, dy: Tensor, needs: Needs) -> MaybeTensors:
        dx = dy.new_zeros(saved.shape)
        wide = dy.dim() - (dx.dim() - len(self.dims))
        front = dy.movedim(list(range(self.at + 1, self.at + wide + 1)), list(range(1, wide + 1)))
        self._front(dx).index_put_(_tensors(saved, dx), front, accumulate=True)
        return (dx, *(None for _ in needs[1:]))

    def forward_dot(self, saved: Selected, inputs_dot: MaybeTensors) -> tuple[Tensor, Selected]:
        assert inputs_dot[0] is not None, "an op without any tangent is not swept"
        return self._take(inputs_dot[0], saved), saved

    def backward_dot(
        self, saved: Selected, saved_dot: Selected, dy: Tensor, dy_dot: Tensor, needs: Needs
    ) -> MaybeTensors:
        return self.backward(saved, dy_dot, needs)


def _tensors(saved: Selected, x: Tensor) -> list[Tensor | None]:
    """The places with a tensor for the tasks, too, which index_put wants."""
    tasks, *indices = saved.places
    tensors = [i for i in indices if isinstance(i, Tensor)]
    if isinstance(tasks, Tensor):
        return [tasks, *tensors]
    wide = max(i.dim() for i in tensors)
    return [torch.arange(x.shape[0], device=x.device).view(-1, *(1,) * wide), *tensors]


class Places(NamedTuple):
    """What a forward sweep of Gather leaves."""

    index: Tensor
    shape: Shape


@dataclass(frozen=True)
class Gather(Op[Places, None]):
    """torch.gather along `dim`: inputs x and an index of as many dimensions."""

    dim: int

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Places]:
        x, index = inputs
        return x.gather(self.dim + 1, index), Places(index, tuple(x.shape))

    def backward(self, saved: Places, dy: Tensor, needs: Needs) -> MaybeTensors:
        return dy.new_zeros(saved.shape).scatter_add(self.dim + 1, saved.index, dy), None

    def forward_dot(self, saved: Places, inputs_dot: MaybeTensors) -> tuple[Tensor, None]:
        assert inputs_dot[0] is not None, "an op without any tangent is not swept"
        return inputs_dot[0].gather(self.dim + 1, saved.index), None

    def backward_dot(self, saved: Places, saved_dot: None, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        return self.backward(saved, dy_dot, needs)
