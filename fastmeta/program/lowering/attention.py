"""Rules of softmax, matrix products and attention."""

from __future__ import annotations

import math
from typing import Any

import torch

from fastmeta.ops.arithmetic import Add, Scale
from fastmeta.ops.einsum import Einsum
from fastmeta.ops.linear import Linear
from fastmeta.ops.matmul import Matmul
from fastmeta.ops.shape import Permute, Reduce, Reshape
from fastmeta.ops.softmax import LogSoftmax, LogSumExp, Softmax
from fastmeta.ops.where import Where

from .activations import dropout
from .base import Lower, NotKnown, Slot
from .rearrange import repeat_interleave


def _dim(x: Slot, dim: Any, dtype: Any) -> int:
    """The dimension that a softmax runs over, or a reason against it."""
    if not isinstance(dim, int):
        raise NotKnown("a softmax without a dimension")
    if not x.shape:
        raise NotKnown("a softmax of a value without dimensions")
    if not x.like.dtype.is_floating_point or dtype not in (None, x.like.dtype):
        raise NotKnown(f"a softmax of {x.like.dtype} as {dtype}")
    return dim % len(x.shape)


def softmax(to: Lower, x: Slot, dim: Any, dtype: Any = None) -> Slot:
    return to.emit(Softmax(_dim(x, dim, dtype)), x)


def softmax_function(
    to: Lower,
    x: Slot,
    dim: Any = None,
    _stacklevel: int = 3,
    dtype: Any = None,
) -> Slot:
    return softmax(to, x, dim, dtype)


def softmin_function(to: Lower, x: Slot, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Slot:
    at = _dim(x, dim, dtype)
    return to.emit(Softmax(at), to.emit(Scale(-1.0), x))


def log_softmax(to: Lower, x: Slot, dim: Any, dtype: Any = None) -> Slot:
    return to.emit(LogSoftmax(_dim(x, dim, dtype)), x)


def log_softmax_function(
    to: Lower,
    x: Slot,
    dim: Any = None,
    _stacklevel: int = 3,
    dtype: Any = None,
) -> Slot:
    return log_softmax(to, x, dim, dtype)


def logsumexp(to: Lower, x: Slot, dim: Any, keepdim: bool = False) -> Slot:
    dims = [dim] if isinstance(dim, int) else list(dim)
    if not x.shape or not dims or not x.like.dtype.is_floating_point:
        raise NotKnown("logsumexp of a value without dimensions, or of integers")
    return to.emit(LogSumExp(tuple(d % len(x.shape) for d in dims), keepdim), x)


def matmul(to: Lower, x: Slot, other: Slot) -> Slot:
    """`@`, of vectors, too: PyTorch's meaning of each number of dimensions."""
    if not isinstance(x, Slot) or not isinstance(other, Slot):
        raise NotKnown("a matrix product with something that is not a tensor")
    _check_dtypes(x, other)
    if not x.shape or not other.shape:
        raise NotKnown("a matrix product with a value without dimensions")
    row, column = len(x.shape) == 1, len(other.shape) == 1
    if row:
        x = to.emit(Reshape((1, *x.shape)), x)
    if column:
        other = to.emit(Reshape((*other.shape, 1)), other)
    y = _product(to, x, other)
    if not row and not column:
        return y
    shape = y.shape[:-1] if column else y.shape
    if row:
        at = len(shape) - (1 if column else 2)
        shape = (*shape[:at], *shape[at + 1 :])
    return to.emit(Reshape(shape), y)


def _product(to: Lower, x: Slot, other: Slot) -> Slot:
    if len(other.shape) == 2:  # one matrix for all rows, which is a linear layer
        return to.emit(Linear(), x, to.emit(Permute((1, 0)), other))
    return to.emit(Matmul(), x, other)


def bmm(to: Lower, x: Slot, mat2: Slot) -> Slot:
    """bmm, mm and mv, whose second argument is called mat2 or vec."""
    return matmul(to, x, mat2)


def mv(to: Lower, x: Slot, vec: Slot) -> Slot:
    return matmul(to, x, vec)


def rmatmul(to: Lower, x: Slot, other: Slot) -> Slot:
    return matmul(to, other, x)


def addmm(to: Lower, x: Slot, mat1: Slot, mat2: Slot, *, beta: float = 1, alpha: float = 1) -> Slot:
    """beta x + alpha mat1 · mat2; with plain factors and a vector as x, a linear layer."""
    _check_dtypes(x, mat1, mat2)
    if beta == 1 and alpha == 1 and x.shape == (mat2.shape[1],):
        return to.emit(Linear(), mat1, to.emit(Permute((1, 0)), mat2), x)
    return _sum(to, x, _product(to, mat1, mat2), beta, alpha)


def baddbmm(to: Lower, x: Slot, batch1: Slot, batch2: Slot, *, beta: float = 1, alpha: float = 1) -> Slot:
    _check_dtypes(x, batch1, batch2)
    return _sum(to, x, to.emit(Matmul(), batch1, batch2), beta, alpha)


def _sum(to: Lower, x: Slot, product: Slot, beta: float, alpha: float) -> Slot:
    if beta == 0:  # x is then not read, not even where it is NaN
        return product if alpha == 1 else to.emit(Scale(float(alpha)), product)
    scaled = x if beta == 1 else to.emit(Scale(float(beta)), x)
    return to.emit(Add(float(alpha)), scaled, product)


def einsum(to: Lower, equation: str, *operands: Any) -> Slot:
    """Of one or two tensors, without an ellipsis and without a letter twice in one of them."""
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or "." in equation or len(tensors) not in (1, 2):
        raise NotKnown("an einsum with an ellipsis, of numbered dimensions or of more than two tensors")
    left, arrow, y = equation.replace(" ", "").partition("->")
    names = left.split(",")
    letters = left.replace(",", "")
    if not arrow:  # those that occur once, in alphabetical order
        y = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if any(len(set(name)) < len(name) for name in (*names, y)) or "Z" in letters or not set(y) <= set(letters):
        raise NotKnown("an einsum with a letter twice")
    if [len(name) for name in names] != [len(t.shape) for t in tensors]:
        raise NotKnown("an einsum with other numbers of dimensions")
    _check_dtypes(*tensors)
    sizes: dict[str, int] = {}
    for name, tensor in zip(names, tensors, strict=True):
        for letter, size in zip(name, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise NotKnown("an einsum that broadcasts")
    if len(tensors) == 2:
        return to.emit(Einsum(names[0], names[1], y), *tensors)
    (x,), (name,) = tensors, names
    summed = tuple(i for i, letter in enumerate(name) if letter not in y)
    x = to.emit(Reduce(summed, False, False), x) if summed else x
    kept = [letter for letter in name if letter in y]
    return to.emit(Permute(tuple(kept.index(letter) for letter in y)), x)


def scaled_dot_product_attention(
    to: Lower,
    query: Slot,
    key: Slot,
    value: Slot,
    attn_mask: Slot | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Slot:
    """softmax(scale · query keyᵀ + mask) value; a row that is masked out whole gives zeros."""
    if min(len(s.shape) for s in (query, key, value)) < 2:
        raise NotKnown("attention of vectors")
    if enable_gqa:
        key, value = _for_each_head(to, query, key), _for_each_head(to, query, value)
    _check_dtypes(query, key, value)
    if is_causal and attn_mask is not None:
        raise NotKnown("attention that is causal and has a mask")
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    last = len(key.shape)
    turned = to.emit(Permute((*range(last - 2), last - 1, last - 2)), key)
    scores = to.emit(Matmul(), to.emit(Scale(factor), query), turned)
    mask = _causal(to, scores) if is_causal else attn_mask
    if mask is not None:
        scores = to.emit(Add(), scores, _additive(to, mask, query.like.dtype))
    weights = to.emit(Softmax(len(scores.shape) - 1, safe=mask is not None), scores)
    return to.emit(Matmul(), dropout(to, weights, dropout_p), value)


def _for_each_head(to: Lower, query: Slot, x: Slot) -> Slot:
    """Keys or values that a group of the queries' heads shares, once for each of these."""
    if min(len(query.shape), len(x.shape)) < 3 or query.shape[-3] % x.shape[-3]:
        raise NotKnown("attention of groups of heads of several sizes (enable_gqa)")
    times = query.shape[-3] // x.shape[-3]
    return x if times == 1 else repeat_interleave(to, x, times, -3)


def _causal(to: Any, scores: Slot) -> Slot:
    """−∞ above the diagonal, where a query would see later keys."""
    dtype, device = scores.like.dtype, scores.like.device
    return to.constant(torch.full(scores.shape[-2:], -torch.inf, dtype=dtype, device=device).triu(1))


def _additive(to: Lower, mask: Slot, dtype: torch.dtype) -> Slot:
    """What a mask adds to the scores: true in a mask of bools means that it takes part."""
    if mask.like.dtype == torch.bool:
        return to.emit(Where(0.0, -torch.inf, dtype), mask)
    if mask.like.dtype != dtype:
        raise NotKnown(f"attention in {dtype} with a mask in {mask.like.dtype}")
    return mask


def _check_dtypes(*values: Slot) -> None:
    dtypes = sorted({str(v.like.dtype) for v in values})
    if len(dtypes) > 1 or not all(v.like.dtype.is_floating_point for v in values):
        raise NotKnown(f"a matrix product of {' with '.join(dtypes)}")
