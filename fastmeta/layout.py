"""Where each parameter lives in the flat buffer [T, P] that holds the fast weights of all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Names, shapes and offsets of a module's trainable parameters in a row of P values.

    Offsets are padded to 16 bytes, so that a kernel may load any parameter with 128-bit accesses. Tied parameters
    appear once, under their first name. The padding is zero and stays zero.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    size: int  # P
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        params = {name: p for name, p in module.named_parameters() if p.requires_grad}
        first = next(iter(params.values()))
        align = max(1, 16 // first.element_size())
        offsets, end = [], 0
        for p in params.values():
            offsets.append(end)
            end += -(-p.numel() // align) * align
        shapes = tuple(p.shape for p in params.values())
        return cls(tuple(params), shapes, tuple(offsets), end, first.dtype, first.device)

    @cached_property
    def _padding(self) -> tuple[int, ...]:
        """Unused values behind each parameter."""
        ends = (*self.offsets[1:], self.size)
        return tuple(end - at - shape.numel() for at, end, shape in zip(self.offsets, ends, self.shapes, strict=True))

    @cached_property
    def _widths(self) -> list[int]:
        """Parameters and the paddings between them, in a row."""
        pairs = zip(self.shapes, self._padding, strict=True)
        return [width for shape, pad in pairs for width in (shape.numel(), pad)]

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters as views [T, *shape] of `flat` [T, P]."""
        pieces = flat.split_with_sizes(self._widths, 1)[::2]
        return [
            piece if len(shape) == 1 else piece.view(-1, *shape)
            for piece, shape in zip(pieces, self.shapes, strict=True)
        ]

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """The parameters' own shapes out of one row [P]."""
        pieces = flat.split_with_sizes(self._widths)[::2]
        return tuple(piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True))

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.views(flat), strict=True))

    def pack(self, values: Sequence[Tensor | None], tasks: int) -> Tensor:
        """Per-parameter tensors [T, *shape] as one buffer [T, P]; `None` counts as zero."""
        pieces: list[Tensor] = []
        for value, shape, pad in zip(values, self.shapes, self._padding, strict=True):
            if value is not None:
                pieces.append(value if value.dim() == 2 == len(shape) + 1 else value.reshape(tasks, -1))
            gap = pad if value is not None else pad + shape.numel()
            if gap:
                pieces.append(torch.zeros(1, 1, dtype=self.dtype, device=self.device).expand(tasks, gap))
        return torch.cat(pieces, 1)
