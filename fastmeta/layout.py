"""Where each parameter lives in the flat buffer [T, P] that holds the fast weights of all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters as views [T, *shape] of `flat` [T, P]."""
        tasks = flat.shape[0]
        return [
            flat[:, offset : offset + shape.numel()].view(tasks, *shape)
            for offset, shape in zip(self.offsets, self.shapes, strict=True)
        ]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.views(flat), strict=True))

    def pack(self, values: Sequence[Tensor | None], tasks: int) -> Tensor:
        """Per-parameter tensors [T, *shape] as one buffer [T, P]; `None` counts as zero."""
        pieces: list[Tensor] = []
        ends = (*self.offsets[1:], self.size)
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        for value, shape, offset, end in zip(values, self.shapes, self.offsets, ends, strict=True):
            used = 0
            if value is not None:
                pieces.append(value.reshape(tasks, -1))
                used = shape.numel()
            if end - offset > used:
                pieces.append(zero.expand(tasks, end - offset - used))
        return torch.cat(pieces, 1)
