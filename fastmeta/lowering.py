"""Which op each PyTorch module, function and method becomes.

A rule takes a `Lower` (the plan under construction) and the call's own arguments, tensors among them as `Slot`s, and
returns the slot of the result. Where a variant has no op of its own, the rule raises `NotKnown` with the reason and
the call becomes an opaque op.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops.activation import Activation
from .ops.arithmetic import Add, Mul, Scale, Shift
from .ops.base import Op
from .ops.batch_norm import batch_norm
from .ops.conv2d import Conv2d
from .ops.dropout import Dropout
from .ops.embedding import Embedding
from .ops.group_norm import GroupNorm
from .ops.layer_norm import layer_norm
from .ops.linear import Linear
from .ops.pool import AvgPool2d, MaxPool2d
from .ops.shape import Concatenate, Permute, Reduce, Reshape, Select


class NotKnown(Exception):
    """No op covers this call; the message says why."""


@dataclass(frozen=True)
class Slot:
    """A value of the plan. `like` is a data-free tensor with one task's shape and dtype."""

    index: int
    like: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.like.shape)


class Lower(Protocol):
    """What a rule may ask of the plan under construction."""

    rows: int | None  # batch-norm statistics from the first rows only

    def emit(self, op: Op, *inputs: Slot) -> Slot: ...

    def tensor(self, module: nn.Module, name: str) -> Slot | None:
        """The slot of a module's parameter or buffer, or None where it has none."""
        ...

    def keys(self) -> Slot:
        """The slot of the step's random keys."""
        ...

    def next_layer(self) -> int:
        """A number of its own for each dropout."""
        ...


Rule = Callable[..., Any]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


# --- linear, convolution, embedding ---------------------------------------------------------------------------------


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
    sparse: bool = False,
) -> Slot:
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise NotKnown("max_norm, scale_grad_by_freq or sparse is set")
    rows = weight.shape[0]
    if padding_idx is not None and padding_idx < 0:
        padding_idx += rows
    return to.emit(Embedding(rows, padding_idx), index, weight)


def embedding_module(to: Lower, m: nn.Embedding, index: Slot) -> Slot:
    weight = to.tensor(m, "weight")
    assert weight is not None
    return embedding(to, index, weight, m.padding_idx, m.max_norm, m.norm_type, m.scale_grad_by_freq, m.sparse)


# --- normalisation --------------------------------------------------------------------------------------------------


def batch_norm_module(to: Lower, m: nn.BatchNorm1d | nn.BatchNorm2d, x: Slot) -> Slot:
    ndim = len(x.shape)
    if ndim < 2:
        raise NotKnown(f"batch norm of an unbatched value {list(x.shape)}")
    fixed = not m.training and m.running_mean is not None
    gamma, beta = to.tensor(m, "weight"), to.tensor(m, "bias")
    mean, var = to.tensor(m, "running_mean"), to.tensor(m, "running_var")
    rows = None if fixed else to.rows
    op = batch_norm(ndim, m.num_features, m.eps, affine=gamma is not None, fixed=fixed, rows=rows)
    return to.emit(op, x, *(s for s in (gamma, beta, *((mean, var) if fixed else ())) if s is not None))


def layer_norm_rule(
    to: Lower,
    x: Slot,
    normalized_shape: Any,
    weight: Slot | None = None,
    bias: Slot | None = None,
    eps: float = 1e-5,
) -> Slot:
    if (weight is None) != (bias is None):
        raise NotKnown("layer norm with only one of weight and bias")
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    op = layer_norm(len(x.shape), shape, eps, affine=weight is not None)
    return to.emit(op, x, *(s for s in (weight, bias) if s is not None))


def layer_norm_module(to: Lower, m: nn.LayerNorm, x: Slot) -> Slot:
    return layer_norm_rule(to, x, m.normalized_shape, to.tensor(m, "weight"), to.tensor(m, "bias"), m.eps)


def group_norm_rule(
    to: Lower,
    x: Slot,
    num_groups: int,
    weight: Slot | None = None,
    bias: Slot | None = None,
    eps: float = 1e-5,
) -> Slot:
    if (weight is None) != (bias is None):
        raise NotKnown("group norm with only one of weight and bias")
    op = GroupNorm(num_groups, x.shape[1], eps, weight is not None)
    return to.emit(op, x, *(s for s in (weight, bias) if s is not None))


def group_norm_module(to: Lower, m: nn.GroupNorm, x: Slot) -> Slot:
    return group_norm_rule(to, x, m.num_groups, to.tensor(m, "weight"), to.tensor(m, "bias"), m.eps)


# --- recurrent cell -------------------------------------------------------------------------------------------------


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


# --- activations and dropout ----------------------------------------------------------------------------------------


def act(to: Lower, x: Slot, kind: str, *args: float) -> Slot:
    return to.emit(Activation(kind, args), x)


def gelu(to: Lower, x: Slot, approximate: str = "none") -> Slot:
    return act(to, x, "gelu_tanh" if approximate == "tanh" else "gelu")


def dropout(
    to: Lower,
    x: Slot,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,  # noqa: ARG001  the caller of rules sees to it
) -> Slot:
    if not training or p == 0:
        return x
    return to.emit(Dropout(p, to.next_layer()), x, to.keys())


# --- pooling --------------------------------------------------------------------------------------------------------


def max_pool2d(
    to: Lower,
    x: Slot,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Slot:
    if return_indices or len(x.shape) != 4:
        raise NotKnown("max-pool with return_indices or of an unbatched image")
    kernel = pair(kernel_size)
    return to.emit(MaxPool2d(kernel, pair(stride) if stride else kernel, pair(padding), pair(dilation), ceil_mode), x)


def avg_pool2d(
    to: Lower,
    x: Slot,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Slot:
    if len(x.shape) != 4:
        raise NotKnown("avg-pool of an unbatched image")
    kernel = pair(kernel_size)
    op = AvgPool2d(
        kernel,
        pair(stride) if stride else kernel,
        pair(padding),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    return to.emit(op, x)


def adaptive_avg_pool2d(to: Lower, x: Slot, output_size: Any) -> Slot:
    sizes = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    sizes = tuple(have if want is None else want for want, have in zip(sizes, x.shape[-2:], strict=True))
    if len(x.shape) != 4:
        raise NotKnown("adaptive avg-pool of an unbatched image")
    if sizes == x.shape[-2:]:
        return x
    if sizes == (1, 1):
        return to.emit(Reduce((2, 3), True, True), x)
    if any(have % want for want, have in zip(sizes, x.shape[-2:], strict=True)):
        raise NotKnown(f"adaptive avg-pool from {list(x.shape[-2:])} to {list(sizes)} has windows of several sizes")
    kernel = (x.shape[-2] // sizes[0], x.shape[-1] // sizes[1])
    return to.emit(AvgPool2d(kernel, kernel, (0, 0), False, True, None), x)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def add(to: Lower, a: Slot | float, b: Slot | float, *, alpha: float = 1) -> Slot:
    _check_floats(a, b)
    if isinstance(a, Slot) and isinstance(b, Slot):
        return to.emit(Add(float(alpha)), a, b)
    if isinstance(a, Slot):
        return to.emit(Shift(float(alpha) * _number(b)), a)
    assert isinstance(b, Slot)
    return add(to, b if alpha == 1 else to.emit(Scale(float(alpha)), b), a)


def sub(to: Lower, a: Slot | float, b: Slot | float, *, alpha: float = 1) -> Slot:
    if isinstance(b, Slot) and not isinstance(a, Slot):
        _check_floats(b)
        return to.emit(Shift(_number(a)), to.emit(Scale(-float(alpha)), b))
    return add(to, a, b, alpha=-alpha)


def rsub(to: Lower, a: Slot, b: Slot | float, *, alpha: float = 1) -> Slot:
    return sub(to, b, a, alpha=alpha)


def mul(to: Lower, a: Slot | float, b: Slot | float) -> Slot:
    _check_floats(a, b)
    if isinstance(a, Slot) and isinstance(b, Slot):
        return to.emit(Mul(), a, b)
    x, factor = (a, b) if isinstance(a, Slot) else (b, a)
    assert isinstance(x, Slot)
    return to.emit(Scale(_number(factor)), x)


def div(to: Lower, a: Slot | float, b: Slot | float, *, rounding_mode: str | None = None) -> Slot:
    if isinstance(a, Slot) and not isinstance(b, Slot) and rounding_mode is None:
        return to.emit(Scale(1.0 / _number(b)), a)
    raise NotKnown("division by a tensor, or rounded")


def neg(to: Lower, x: Slot) -> Slot:
    _check_floats(x)
    return to.emit(Scale(-1.0), x)


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise NotKnown(f"arithmetic with a {type(value).__name__}")
    return float(value)


def _check_floats(*values: Slot | float) -> None:
    """An op's plain numbers are floats, which would make a float of an index; two dtypes would have to be promoted."""
    dtypes = sorted({str(v.like.dtype) for v in values if isinstance(v, Slot)})
    if len(dtypes) > 1 or not all(v.like.dtype.is_floating_point for v in values if isinstance(v, Slot)):
        raise NotKnown(f"arithmetic of {' with '.join(dtypes)}")


# --- shapes ---------------------------------------------------------------------------------------------------------


def reshape(to: Lower, x: Slot, *shape: Any) -> Slot:
    """view and reshape; the target may hold one -1."""
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], Sequence) else list(shape)
    if any(not isinstance(s, int) for s in sizes):
        raise NotKnown("a view by dtype")
    elements = math.prod(x.shape)
    if -1 in sizes:
        sizes[sizes.index(-1)] = elements // max(1, math.prod(s for s in sizes if s != -1))
    return to.emit(Reshape(tuple(sizes)), x)


def flatten(to: Lower, x: Slot, start_dim: int = 0, end_dim: int = -1) -> Slot:
    shape = x.shape or (1,)
    start, end = start_dim % len(shape), end_dim % len(shape)
    return to.emit(Reshape((*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])), x)


def squeeze(to: Lower, x: Slot, dim: Any = None) -> Slot:
    n = len(x.shape)
    if n == 0:
        return x
    dims = range(n) if dim is None else [d % n for d in ([dim] if isinstance(dim, int) else dim)]
    return to.emit(Reshape(tuple(s for i, s in enumerate(x.shape) if i not in dims or s != 1)), x)


def unsqueeze(to: Lower, x: Slot, dim: int) -> Slot:
    at = dim % (len(x.shape) + 1)
    return to.emit(Reshape((*x.shape[:at], 1, *x.shape[at:])), x)


def permute(to: Lower, x: Slot, *dims: Any) -> Slot:
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], Sequence) else dims
    return to.emit(Permute(tuple(d % len(x.shape) for d in order)), x)


def transpose(to: Lower, x: Slot, dim0: int, dim1: int) -> Slot:
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return to.emit(Permute(tuple(order)), x)


def _reduce(to: Lower, x: Slot, dim: Any, keepdim: bool, mean: bool) -> Slot:
    n = len(x.shape)
    if n == 0:  # without dimensions of its own PyTorch would reduce over the tasks
        return x
    dims = range(n) if dim is None or dim in ((), []) else [d % n for d in ([dim] if isinstance(dim, int) else dim)]
    if not x.like.dtype.is_floating_point:
        raise NotKnown(f"a reduction of {x.like.dtype}")
    return to.emit(Reduce(tuple(dims), keepdim, mean), x)


def mean(to: Lower, x: Slot, dim: Any = None, keepdim: bool = False) -> Slot:
    return _reduce(to, x, dim, keepdim, True)


def total(to: Lower, x: Slot, dim: Any = None, keepdim: bool = False) -> Slot:
    return _reduce(to, x, dim, keepdim, False)


def cat(to: Lower, tensors: Sequence[Slot], dim: int = 0) -> Slot:
    if len({len(t.shape) for t in tensors}) > 1 or len({t.like.dtype for t in tensors}) > 1:
        raise NotKnown("cat of values of several ranks or dtypes")
    return to.emit(Concatenate(dim % len(tensors[0].shape)), *tensors)


def getitem(to: Lower, x: Any, index: Any) -> Any:
    if not isinstance(x, Slot):
        return x[index]
    parts = index if isinstance(index, tuple) else (index,)
    basic = (int, slice, type(None), type(Ellipsis))
    if any(isinstance(p, bool) or not isinstance(p, basic) for p in parts):
        raise NotKnown("indexing with a tensor or a list")
    return to.emit(Select(parts), x)


def split(to: Lower, x: Slot, split_size: Any, dim: int = 0) -> tuple[Slot, ...]:
    dim %= len(x.shape)
    size = x.shape[dim]
    sizes = split_size
    if isinstance(sizes, int):
        sizes = [min(sizes, size - i) for i in range(0, size, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    lead = (slice(None),) * dim
    return tuple(to.emit(Select((*lead, slice(a, a + n))), x) for a, n in zip(starts, sizes, strict=True))


def chunk(to: Lower, x: Slot, chunks: int, dim: int = 0) -> tuple[Slot, ...]:
    return split(to, x, -(-x.shape[dim] // chunks), dim)


def unbind(to: Lower, x: Slot, dim: int = 0) -> tuple[Slot, ...]:
    dim %= len(x.shape)
    lead = (slice(None),) * dim
    return tuple(to.emit(Select((*lead, i)), x) for i in range(x.shape[dim]))


def identity(to: Lower, x: Slot, *_: Any) -> Slot:  # noqa: ARG001
    return x


def _activation(kind: str, *names: str, **defaults: float) -> tuple[Rule, Rule]:
    """The rules of an activation: as a function with keyword parameters, and as a module with attributes."""

    def function(to: Lower, x: Slot, *args: float, inplace: bool = False, **options: float) -> Slot:  # noqa: ARG001
        values = {**defaults, **dict(zip(defaults, args, strict=False)), **options}
        return act(to, x, kind, *(float(values[k]) for k in defaults))

    def module(to: Lower, m: nn.Module, x: Slot) -> Slot:
        return act(to, x, kind, *(float(getattr(m, name)) for name in names))

    return function, module


_relu, _relu_module = _activation("relu")
_leaky, _leaky_module = _activation("leaky_relu", "negative_slope", negative_slope=0.01)
_elu, _elu_module = _activation("elu", "alpha", alpha=1.0)
_silu, _silu_module = _activation("silu")
_tanh, _tanh_module = _activation("tanh")
_sigmoid, _sigmoid_module = _activation("sigmoid")
_softplus, _softplus_module = _activation("softplus", "beta", "threshold", beta=1.0, threshold=20.0)
_sin, _ = _activation("sin")

MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear_module,
    nn.Conv2d: conv2d_module,
    nn.Embedding: embedding_module,
    nn.LSTMCell: lstm_cell_module,
    nn.BatchNorm1d: batch_norm_module,
    nn.BatchNorm2d: batch_norm_module,
    nn.LayerNorm: layer_norm_module,
    nn.GroupNorm: group_norm_module,
    nn.ReLU: _relu_module,
    nn.LeakyReLU: _leaky_module,
    nn.ELU: _elu_module,
    nn.GELU: lambda to, m, x: gelu(to, x, m.approximate),
    nn.SiLU: _silu_module,
    nn.Tanh: _tanh_module,
    nn.Sigmoid: _sigmoid_module,
    nn.Softplus: _softplus_module,
    nn.Dropout: lambda to, m, x: dropout(to, x, m.p, m.training),
    nn.Identity: lambda to, m, x: x,
    nn.MaxPool2d: lambda to, m, x: max_pool2d(
        to, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: lambda to, m, x: avg_pool2d(
        to, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda to, m, x: adaptive_avg_pool2d(to, x, m.output_size),
    nn.Flatten: lambda to, m, x: flatten(to, x, m.start_dim, m.end_dim),
    nn.Unflatten: lambda to, m, x: reshape(
        to, x, *x.shape[: m.dim % len(x.shape)], *m.unflattened_size, *x.shape[m.dim % len(x.shape) + 1 :]
    ),
}

FUNCTIONS: dict[Any, Rule] = {
    F.linear: linear,
    F.conv2d: conv2d,
    torch.conv2d: conv2d,
    F.embedding: embedding,
    F.layer_norm: layer_norm_rule,
    F.group_norm: group_norm_rule,
    F.relu: _relu,
    torch.relu: _relu,
    F.leaky_relu: _leaky,
    F.elu: _elu,
    F.gelu: gelu,
    F.silu: _silu,
    torch.tanh: _tanh,
    F.tanh: _tanh,
    torch.sigmoid: _sigmoid,
    F.sigmoid: _sigmoid,
    F.softplus: _softplus,
    torch.sin: _sin,
    F.dropout: dropout,
    F.max_pool2d: max_pool2d,
    torch.max_pool2d: max_pool2d,
    F.avg_pool2d: avg_pool2d,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    operator.add: add,
    operator.iadd: add,
    torch.add: add,
    operator.sub: sub,
    operator.isub: sub,
    torch.sub: sub,
    torch.rsub: rsub,
    operator.mul: mul,
    operator.imul: mul,
    torch.mul: mul,
    operator.truediv: div,
    operator.itruediv: div,
    torch.div: div,
    operator.neg: neg,
    torch.neg: neg,
    torch.reshape: reshape,
    torch.flatten: flatten,
    torch.squeeze: squeeze,
    torch.unsqueeze: unsqueeze,
    torch.permute: permute,
    torch.transpose: transpose,
    torch.mean: mean,
    torch.sum: total,
    torch.cat: cat,
    torch.concat: cat,
    torch.chunk: chunk,
    torch.split: split,
    torch.unbind: unbind,
    operator.getitem: getitem,
}

METHODS: dict[str, Rule] = {
    "add": add, "add_": add, "__add__": add, "sub": sub, "sub_": sub, "mul": mul, "mul_": mul, "div": div, "div_": div,
    "neg": neg, "relu": _relu, "relu_": _relu, "tanh": _tanh, "tanh_": _tanh, "sigmoid": _sigmoid,
    "sigmoid_": _sigmoid, "sin": _sin, "view": reshape, "reshape": reshape, "flatten": flatten, "squeeze": squeeze,
    "unsqueeze": unsqueeze, "permute": permute, "transpose": transpose, "mean": mean, "sum": total,
    "chunk": chunk, "split": split, "unbind": unbind, "contiguous": identity, "clone": identity,
}  # fmt: skip

INPLACE_FUNCTIONS = frozenset({operator.iadd, operator.isub, operator.imul, operator.itruediv})
