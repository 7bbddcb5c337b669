"""A small transformer encoder that predicts masked characters (Vaswani et al. 2017; Devlin et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Layer(nn.Module):
    """Attention and a hidden layer, each on a normalised input and added to it (pre-norm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.split = (heads, width // heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, *self.split)).permute(2, 0, 3, 1, 4)  # [3, N, heads, length, ·]
        q, k, v = qkv[0], qkv[1], qkv[2]
        mixed = torch.softmax(q @ k.transpose(2, 3) * self.split[1] ** -0.5, 3) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class MaskedTransformer(nn.Module):
    """Characters int64 [N, length] → logits [N, symbols, length], as `F.cross_entropy` takes them.

    Args:
        symbols: classes of a prediction; the number `symbols` itself is the mask.
        length: of the windows.
        width: of a character's vector.
        layers: of attention.
        heads: of each.
    """

    def __init__(self, symbols: int, length: int, *, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of {heads} (heads), got {width}")
        self.embedding = nn.Embedding(symbols + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.Sequential(*(_Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(self.embedding(x) + self.position)
        return self.head(self.norm(y)).transpose(1, 2)
