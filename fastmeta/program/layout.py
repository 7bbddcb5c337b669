"""Where each parameter lives in the flat buffer [T, P] that holds the fast weights of all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Names, shapes and offsets of some of a module's trainable parameters in a row of P values.

    Offsets are padded to 16 bytes, so that a kernel may load any parameter with 128-bit accesses. Tied parameters
    appear once, under their first name. The padding is zero and stays zero.

    Where parameters are of several dtypes, the row is of the one that holds all of them exactly (float64 for float32
    and float64, complex for a complex one), and every parameter comes out of it in its own.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    size: int  # P
    dtype: torch.dtype
    device: torch.device
    dtypes: tuple[torch.dtype, ...]  # of each parameter

    @cached_property
    def mixed(self) -> bool:
        """Whether parameters are of several dtypes or of a complex one: sweeps calculate in one real dtype."""
        return self.dtype.is_complex or any(dtype != self.dtype for dtype in self.dtypes)

    @classmethod
    def of(cls, module: nn.Module, holds: Callable[[str], bool] = lambda name: True) -> Layout:
        """Of the trainable parameters whose names `holds` admits; none gives a row of no values."""
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        params = {name: p for name, p in trainable.items() if holds(name)}
        first = next(iter((params or trainable).values()))
        dtype = reduce(torch.promote_types, [p.dtype for p in params.values()] or [first.dtype])
        align = max(1, 16 // dtype.itemsize)
        offsets, end = [], 0
        for p in params.values():
            offsets.append(end)
            end += -(-p.numel() // align) * align
        shapes = tuple(p.shape for p in params.values())
        dtypes = tuple(p.dtype for p in params.values())
        return cls(tuple(params), shapes, tuple(offsets), end, dtype, first.device, dtypes)

    @property
    def padding(self) -> tuple[int, ...]:
        """Unused values behind each parameter."""
        return self._padding

    @cached_property
    def _padding(self) -> tuple[int, ...]:
        ends = (*self.offsets[1:], self.size)
        return tuple(end - at - shape.numel() for at, end, shape in zip(self.offsets, ends, self.shapes, strict=True))

    def take(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """The parameters of the row, in its order, out of all of a module's."""
        return [named[name] for name in self.names]

    def row(self, values: Sequence[Tensor]) -> Tensor:
        """The parameters [*shape] as one row [P]; differentiable."""
        return self.pack([x.unsqueeze(0) for x in values], 1)[0]

    @cached_property
    def _pieces(self) -> tuple[list[int], list[tuple[int, torch.Size]]]:
        """Widths of the parameters and of the paddings between them, in a row; which are parameters, of what shape."""
        widths: list[int] = []
        params: list[tuple[int, torch.Size]] = []
        for shape, pad in zip(self.shapes, self.padding, strict=True):
            params.append((len(widths), shape))
            widths += [shape.numel(), pad] if pad else [shape.numel()]
        return widths, params

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters as views [T, *shape] of `flat` [T, P]; copies where dtypes are mixed."""
        widths, params = self._pieces
        pieces = flat.split_with_sizes(widths, 1)
        views = [pieces[i] if len(shape) == 1 else pieces[i].view(-1, *shape) for i, shape in params]
        return views if not self.mixed else [_cast(x, dtype) for x, dtype in zip(views, self.dtypes, strict=True)]

    @cached_property
    def _places(self) -> list[tuple[torch.Size, tuple[int, ...], int]]:
        """Shape, strides and offset of each parameter in a row."""
        return [
            (shape, torch.empty(shape, device="meta").stride(), at)
            for shape, at in zip(self.shapes, self.offsets, strict=True)
        ]

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """The parameters' own shapes out of one row [P] of memory of its own: half the time of a split and views."""
        assert flat.is_contiguous()
        assert flat.storage_offset() == 0
        return tuple([flat.as_strided(*place) for place in self._places])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.views(flat), strict=True))

    def pack(self, values: Sequence[Tensor | None], tasks: int) -> Tensor:
        """Per-parameter tensors [T, *shape] as one buffer [T, P]; `None` counts as zero."""
        pieces: list[Tensor] = []
        for value, shape, pad in zip(values, self.shapes, self.padding, strict=True):
            if value is not None:
                pieces.append(value if value.dim() == 2 == len(shape) + 1 else value.reshape(tasks, -1))
            gap = pad if value is not None else pad + shape.numel()
            if gap:
                # contiguous: one expanded piece sends `cat` of all of them down a path three times as slow
                pieces.append(torch.zeros(tasks, gap, dtype=self.dtype, device=self.device))
        if not pieces:
            return torch.zeros(tasks, 0, dtype=self.dtype, device=self.device)
        return torch.cat([x.to(self.dtype) for x in pieces] if self.mixed else pieces, 1)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Out of a row of a wider dtype; exact where the value came from `dtype`."""
    return (x if dtype.is_complex or not x.is_complex() else x.real).to(dtype)
