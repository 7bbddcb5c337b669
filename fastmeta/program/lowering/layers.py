"""Rules of layers with parameters: linear, convolution, embedding, LSTM cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmeta.ops.conv2d import Conv2d
from fastmeta.ops.conv_transpose2d import ConvTranspose2d
from fastmeta.ops.embedding import Embedding
from fastmeta.ops.linear import Linear
from fastmeta.ops.shape import Reshape

from .activations import act
from .arithmetic import add, mul, sub
from .base import Lower, NotKnown, Rule, Slot, pair
from .shapes import chunk, squeeze, unsqueeze


def linear(to: Lower, x: Slot, weight: Slot, bias: Slot | None = None) -> Slot:
    if len(weight.shape) != 2 or not x.shape:
        raise NotKnown(f"linear of {list(x.shape)} by {list(weight.shape)} is not [N, ..., D] by [O, D]")
    dtypes = sorted({str(s.like.dtype) for s in (x, weight, bias) if s is not None})
    if len(dtypes) > 1:
        raise NotKnown(f"linear of {' with '.join(dtypes)}")
    if len(x.shape) == 1:
        y = linear(to, to.emit(Reshape((1, *x.shape)), x), weight, bias)
        return to.emit(Reshape(y.shape[1:]), y)
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


def conv1d(
    to: Lower,
    x: Slot,
    weight: Slot,
    bias: Slot | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Slot:
    """Of rows [N, C, L] as images one pixel high."""
    if len(x.shape) != 3:
        raise NotKnown(f"conv1d of an unbatched row {list(x.shape)}")
    image, filters = unsqueeze(to, x, -2), unsqueeze(to, weight, -2)
    around = padding if isinstance(padding, str) else (0, pair(padding)[0])
    y = conv2d(to, image, filters, bias, (1, pair(stride)[0]), around, (1, pair(dilation)[0]), groups)
    return squeeze(to, y, -2)


def conv_transpose2d(
    to: Lower,
    x: Slot,
    weight: Slot,
    bias: Slot | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Slot:
    if len(x.shape) != 4:
        raise NotKnown(f"conv_transpose2d of an unbatched image {list(x.shape)}")
    op = ConvTranspose2d(pair(stride), pair(padding), pair(output_padding), pair(dilation), groups)
    return to.emit(op, x, weight, *(() if bias is None else (bias,)))


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


def lstm_cell(
    to: Lower,
    x: Slot,
    hx: Sequence[Slot],
    w_ih: Slot,
    w_hh: Slot,
    b_ih: Slot | None = None,
    b_hh: Slot | None = None,
) -> tuple[Slot, Slot]:
    """(h, c) → (h, c) of x [N, D]; vmap has no rule for PyTorch's own."""
    if len(x.shape) != 2:
        raise NotKnown("an LSTM cell of an unbatched value")
    gates = add(to, linear(to, x, w_ih, b_ih), linear(to, hx[0], w_hh, b_hh))
    take, forget, value, show = chunk(to, gates, 4, 1)
    kept = mul(to, act(to, forget, "sigmoid"), hx[1])
    c = add(to, kept, mul(to, act(to, take, "sigmoid"), act(to, value, "tanh")))
    return mul(to, act(to, show, "sigmoid"), act(to, c, "tanh")), c


def gru_cell(
    to: Lower,
    x: Slot,
    hx: Slot,
    w_ih: Slot,
    w_hh: Slot,
    b_ih: Slot | None = None,
    b_hh: Slot | None = None,
) -> Slot:
    """h → h of x [N, D]."""
    if len(x.shape) != 2:
        raise NotKnown("a GRU cell of an unbatched value")
    of_x = chunk(to, linear(to, x, w_ih, b_ih), 3, 1)
    of_h = chunk(to, linear(to, hx, w_hh, b_hh), 3, 1)
    reset, keep = (act(to, add(to, a, b), "sigmoid") for a, b in zip(of_x[:2], of_h[:2], strict=True))
    new = act(to, add(to, of_x[2], mul(to, reset, of_h[2])), "tanh")
    return add(to, new, mul(to, keep, sub(to, hx, new)))


def _rnn_cell(kind: str) -> Rule:
    def rule(
        to: Lower,
        x: Slot,
        hx: Slot,
        w_ih: Slot,
        w_hh: Slot,
        b_ih: Slot | None = None,
        b_hh: Slot | None = None,
    ) -> Slot:
        if len(x.shape) != 2:
            raise NotKnown("an RNN cell of an unbatched value")
        return act(to, add(to, linear(to, x, w_ih, b_ih), linear(to, hx, w_hh, b_hh)), kind)

    return rule


rnn_tanh_cell = _rnn_cell("tanh")
rnn_relu_cell = _rnn_cell("relu")
