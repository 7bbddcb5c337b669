"""Rules of layers with parameters: linear, convolution, embedding, LSTM cell."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastmeta.ops.conv2d import Conv2d
from fastmeta.ops.embedding import Embedding
from fastmeta.ops.linear import Linear

from .activations import act
from .arithmetic import add, mul
from .base import Lower, NotKnown, Slot, pair
from .shapes import chunk


def linear(to: Lower, x: Slot, weight: Slot, bias: Slot | None = None) -> Slot:
    if len(weight.shape) != 2 or len(x.shape) < 2:
        raise NotKnown(f"linear of {list(x.shape)} by {list(weight.shape)} is not [N, ..., D] by [O, D]")
    return to.emit(Linear(), x, weight, *(() if bias is None else (bias,)))


def conv2d(
    to: Lower,
    x: Slot,
    weight: Slot,
    bias: Slot | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Slot:
    if len(x.shape) != 4:
        raise NotKnown(f"conv2d of an unbatched image {list(x.shape)}")
    stride, dilation = pair(stride), pair(dilation)
    if padding == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(span % 2 for span in spans):
            raise NotKnown("padding='same' with an even kernel pads its sides differently")
        padding = (spans[0] // 2, spans[1] // 2)
    elif padding == "valid":
        padding = 0
    op = Conv2d(stride, pair(padding), dilation, groups)
    return to.emit(op, x, weight, *(() if bias is None else (bias,)))


def conv2d_module(to: Lower, m: nn.Conv2d, x: Slot) -> Slot:
    if m.padding_mode != "zeros":
        raise NotKnown(f"padding_mode={m.padding_mode!r}")
    weight = to.tensor(m, "weight")
    assert weight is not None
    return conv2d(to, x, weight, to.tensor(m, "bias"), m.stride, m.padding, m.dilation, m.groups)


def linear_module(to: Lower, m: nn.Linear, x: Slot) -> Slot:
    weight = to.tensor(m, "weight")
    assert weight is not None
    return linear(to, x, weight, to.tensor(m, "bias"))


def embedding(
    to: Lower,
    index: Slot,
    weight: Slot,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001  of max_norm
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001  a way to keep a gradient, not another one
) -> Slot:
    if max_norm is not None or scale_grad_by_freq:
        raise NotKnown("max_norm or scale_grad_by_freq is set")
    rows = weight.shape[0]
    if padding_idx is not None and padding_idx < 0:
        padding_idx += rows
    return to.emit(Embedding(rows, padding_idx), index, weight)


def embedding_module(to: Lower, m: nn.Embedding, index: Slot) -> Slot:
    weight = to.tensor(m, "weight")
    assert weight is not None
    return embedding(to, index, weight, m.padding_idx, m.max_norm, m.norm_type, m.scale_grad_by_freq, m.sparse)


def lstm_cell_module(to: Lower, m: nn.LSTMCell, x: Slot, hx: tuple[Slot, Slot] | None = None) -> tuple[Slot, Slot]:
    """(h, c) → (h, c) of x [N, D]; vmap has no rule for PyTorch's own."""
    if hx is None or len(x.shape) != 2:
        raise NotKnown("an LSTM cell without a state, or of an unbatched value")
    w_x, w_h = to.tensor(m, "weight_ih"), to.tensor(m, "weight_hh")
    assert w_x is not None
    assert w_h is not None
    gates = add(to, linear(to, x, w_x, to.tensor(m, "bias_ih")), linear(to, hx[0], w_h, to.tensor(m, "bias_hh")))
    take, forget, value, show = chunk(to, gates, 4, 1)
    kept = mul(to, act(to, forget, "sigmoid"), hx[1])
    c = add(to, kept, mul(to, act(to, take, "sigmoid"), act(to, value, "tanh")))
    return mul(to, act(to, show, "sigmoid"), act(to, c, "tanh")), c
