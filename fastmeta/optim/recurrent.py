"""What inner rules that are recurrent networks share: every coordinate of φ has states of its own, and all of them the
same weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .base import Meta, Rows


class Network(nn.Module):
    """The learned network of a recurrent rule: moved to where the fast weights are when a learner is made."""

    def build(self, rows: Rows, steps: int) -> None:
        """Its parameters on the device and in the dtype of a row; their shapes do not depend on the rows."""
        if rows.dtype.is_complex:
            raise ValueError(f"{type(self).__name__} steps real numbers, and the module has complex parameters")
        self.to(rows.device, rows.dtype)


class Gates(NamedTuple):
    """What a cell's backward reads of its forward: the gates behind their activations and the new cell state."""

    i: Tensor
    f: Tensor
    new: Tensor
    o: Tensor
    tanh_c: Tensor


def lstm(x: Tensor, h: Tensor, c: Tensor, weights: Meta) -> tuple[Tensor, Tensor, Gates]:
    """A cell of `torch.nn.LSTMCell`: inputs [T, P, inputs], states [T, P, hidden] → the new states, and its gates.

    `weights` are weight_ih [4 hidden, inputs], weight_hh [4 hidden, hidden], bias_ih and bias_hh [4 hidden].
    """
    of_x, of_h, bias_x, bias_h = weights
    before = torch.matmul(x, of_x.mT) + torch.matmul(h, of_h.mT) + (bias_x + bias_h)
    i, f, new, o = before.chunk(4, -1)
    i, f, new, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(new), torch.sigmoid(o)
    c = torch.addcmul(f * c, i, new)
    tanh_c = torch.tanh(c)
    return o * tanh_c, c, Gates(i, f, new, o, tanh_c)


def lstm_vjp(
    x: Tensor, h: Tensor, c: Tensor, weights: Meta, gates: Gates, d_h: Tensor, d_c: Tensor, *, wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Meta]:
    """Cotangents of the new states → those of x, h and c and, `wanted`, each task's of the weights, [T, *shape]."""
    i, f, new, o, tanh_c = gates
    d_c = torch.addcmul(d_c, d_h * o, 1 - tanh_c * tanh_c)
    d_before = torch.cat([
        d_c * new * (i * (1 - i)), d_c * c * (f * (1 - f)), d_c * i * (1 - new * new), d_h * tanh_c * (o * (1 - o)),
    ], -1)  # fmt: skip
    of_weights: Meta = ()
    if wanted:
        bias = d_before.sum(1)
        of_weights = (torch.matmul(d_before.mT, x), torch.matmul(d_before.mT, h), bias, bias)
    return torch.matmul(d_before, weights[0]), torch.matmul(d_before, weights[1]), d_c * f, of_weights
