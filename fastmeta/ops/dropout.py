"""Dropout with a mask that is a pure function of (task key, layer, element): x [T, ...] → x · mask / (1 − p).

Nothing is stored or drawn, so a step's forward, backward and adjoint see the same mask even when activations are
computed again, tasks run in slices, or the step is compiled. The hash is the 32-bit finaliser "lowbias32"
(Wellons 2018, "Prospecting for hash functions"), applied twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import MaybeTensors, Needs, Op

_MASK32 = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads consecutive counters


def _hash(x: Tensor) -> Tensor:
    """32-bit integer hash of non-negative int64 values below 2**32."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK32
    x = x ^ (x >> 15)
    # 0x846CA68B exceeds 31 bits: its product with a 32-bit value wraps in int64, whose low 32 bits stay right
    x = (x * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


def task_keys(seed: int, tasks: int, device: torch.device) -> Tensor:
    """One key per task [T], int64, from a seed."""
    index = torch.arange(tasks, dtype=torch.int64, device=device)
    return _hash(_hash(index) ^ (seed & _MASK32))


def step_keys(keys: Tensor, step: int) -> Tensor:
    """The keys of inner step `step`; the query pass counts as step K."""
    return _hash((keys + (step + 1) * _GOLDEN) & _MASK32)


@dataclass(frozen=True)
class Dropout(Op[Tensor, None]):
    """Inputs: x [T, ...] and the step's keys [T]. `layer` numbers a module's dropouts, so that their masks differ."""

    p: float
    layer: int

    def _mask(self, keys: Tensor, x: Tensor) -> Tensor:
        index = torch.arange(math.prod(x.shape[1:]), dtype=torch.int64, device=x.device)
        layer_keys = _hash((keys + (self.layer + 1) * _GOLDEN) & _MASK32)
        bits = _hash(_hash(index & _MASK32) ^ layer_keys.unsqueeze(1))
        keep = bits >= int(self.p * 2**32)
        scale = 1.0 / (1.0 - self.p) if self.p < 1 else 0.0
        return (keep.to(x.dtype) * scale).view(x.shape)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, keys = inputs
        mask = self._mask(keys, x)
        return x * mask, mask

    def backward(self, saved: Tensor, dy: Tensor, needs: Needs) -> MaybeTensors:
        return dy * saved, None

    def forward_dot(self, saved: Tensor, inputs_dot: MaybeTensors) -> tuple[Tensor, None]:
        x_dot = inputs_dot[0]
        assert x_dot is not None, "an op without any tangent is not swept"
        return x_dot * saved, None

    def backward_dot(self, saved: Tensor, saved_dot: None, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        return dy_dot * saved, None
