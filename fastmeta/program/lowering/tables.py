"""Which rule each PyTorch function has, in all the names under which it is called."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from . import elementwise, rearrange, reductions, residuals
from .activations import dropout, elu, gelu, leaky, prelu, relu, sigmoid, silu, sin, softplus, tanh
from .arithmetic import add, addcdiv, addcmul, div, lerp, mul, neg, rdiv, rsub, sub
from .attention import (
    addmm,
    baddbmm,
    bmm,
    einsum,
    log_softmax,
    log_softmax_function,
    logsumexp,
    matmul,
    mv,
    rmatmul,
    scaled_dot_product_attention,
    softmax,
    softmax_function,
    softmin_function,
)
from .base import Rule
from .layers import (
    conv1d,
    conv2d,
    conv_transpose2d,
    embedding,
    gru_cell,
    linear,
    lstm_cell,
    rnn_relu_cell,
    rnn_tanh_cell,
)
from .norms import batch_norm_rule, group_norm_rule, instance_norm_rule, layer_norm_rule, rms_norm_rule
from .pooling import adaptive_avg_pool1d, adaptive_avg_pool2d, avg_pool1d, avg_pool2d, max_pool1d, max_pool2d
from .shapes import (
    cat,
    chunk,
    flatten,
    getitem,
    identity,
    mean,
    permute,
    reshape,
    split,
    squeeze,
    total,
    transpose,
    unbind,
    unsqueeze,
)

_T: Any = torch.Tensor
_e, _r, _d, _l = elementwise, rearrange, reductions, residuals

# Under one name.
FUNCTIONS: dict[Any, Rule] = {
    F.linear: linear, torch.conv2d: conv2d, F.embedding: embedding, F.batch_norm: batch_norm_rule,
    F.mse_loss: _l.mse_loss, F.l1_loss: _l.l1_loss, F.huber_loss: _l.huber_loss, F.smooth_l1_loss: _l.smooth_l1_loss,
    F.binary_cross_entropy_with_logits: _l.binary_cross_entropy_with_logits, F.cross_entropy: _l.cross_entropy,
    F.soft_margin_loss: _l.soft_margin_loss, F.interpolate: _r.interpolate, F.normalize: _d.normalize,
    F.pairwise_distance: _d.pairwise_distance, torch.einsum: einsum, torch.prelu: prelu, F.prelu: prelu,
    torch.conv_transpose2d: conv_transpose2d, F.max_pool1d: max_pool1d, F.avg_pool1d: avg_pool1d,
    F.adaptive_avg_pool1d: adaptive_avg_pool1d, torch.rnn_tanh_cell: rnn_tanh_cell, torch.rnn_relu_cell: rnn_relu_cell,
    torch.conv1d: conv1d, torch.lstm_cell: lstm_cell, torch.gru_cell: gru_cell, F.instance_norm: instance_norm_rule,
    F.rms_norm: rms_norm_rule, torch.var_mean: _d.var_mean, torch.std_mean: _d.std_mean, torch.norm: _d.norm,
    _T.norm: _d.norm, torch.linalg.vector_norm: _d.vector_norm, torch.linalg.norm: _d.linalg_norm,
    F.layer_norm: layer_norm_rule, F.group_norm: group_norm_rule, F.dropout: dropout, F.max_pool2d: max_pool2d,
    F.avg_pool2d: avg_pool2d, F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    F.relu: relu, F.leaky_relu: leaky, F.elu: elu, F.gelu: gelu, F.silu: silu, F.softplus: softplus,
    F.hardtanh: _e.hardtanh, F.relu6: _e.relu6, F.hardswish: _e.hardswish, F.mish: _e.mish, F.selu: _e.selu,
    F.softsign: _e.softsign, F.logsigmoid: _e.logsigmoid, F.glu: _e.glu,
    F.softmax: softmax_function, F.softmin: softmin_function, F.log_softmax: log_softmax_function,
    torch.where: _e.where, _T.where: _e.where_method,
    torch.cat: cat, torch.concat: cat, torch.concatenate: cat, torch.rsub: rsub, _T.__rdiv__: rdiv,
    _T.__rmatmul__: rmatmul, _T.__getitem__: getitem, _T.clone: identity, torch.clone: identity,
    _T.contiguous: identity, _T.detach: identity, torch.detach: identity, _T.view: reshape,
    _T.to: _e.cast, _T.float: _e.as_float, _T.double: _e.as_double, _T.half: _e.as_half,
    _T.bfloat16: _e.as_bfloat16, _T.type_as: _e.type_as,
    _T.T.__get__: _r.reversed_dims, _T.mT.__get__: _r.matrix_transpose, _T.expand: _r.expand,
    _T.expand_as: _r.expand_as, _T.repeat: _r.repeat, _T.reshape_as: _r.reshape_as, _T.view_as: _r.reshape_as,
    _T.unflatten: _r.unflatten, torch.stack: _r.stack, F.pad: _r.pad,
}  # fmt: skip

# As torch.name, as a method, and with a trailing underscore in place.
NAMES: dict[str, Rule] = {
    "relu": relu, "tanh": tanh, "sigmoid": sigmoid, "sin": sin, "add": add, "sub": sub, "subtract": sub, "mul": mul,
    "multiply": mul, "div": div, "divide": div, "true_divide": div, "neg": neg, "negative": neg, "addcmul": addcmul,
    "addcdiv": addcdiv, "lerp": lerp, "reshape": reshape, "flatten": flatten, "squeeze": squeeze,
    "unsqueeze": unsqueeze, "permute": permute, "transpose": transpose, "mean": mean, "sum": total, "chunk": chunk,
    "split": split, "unbind": unbind,
    "softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp, "matmul": matmul, "mm": bmm, "bmm": bmm,
    "mv": mv, "addmm": addmm, "baddbmm": baddbmm,
    "abs": _e.absolute, "absolute": _e.absolute, "atan": _e.atan, "cos": _e.cos, "cosh": _e.cosh, "erf": _e.erf,
    "exp": _e.exp, "expm1": _e.expm1, "log": _e.log, "log1p": _e.log1p, "reciprocal": _e.reciprocal,
    "rsqrt": _e.rsqrt, "selu": _e.selu, "sinh": _e.sinh, "sqrt": _e.sqrt, "tan": _e.tan, "square": _e.square,
    "pow": _e.power, "clamp": _e.clamp, "clip": _e.clamp, "clamp_min": _e.clamp_min, "clamp_max": _e.clamp_max,
    "broadcast_to": _r.broadcast_to, "repeat_interleave": _r.repeat_interleave, "flip": _r.flip, "roll": _r.roll,
    "narrow": _r.narrow, "select": _r.select, "t": _r.t, "movedim": _r.movedim, "moveaxis": _r.movedim,
    "swapaxes": _r.swapaxes, "swapdims": _r.swapaxes, "triu": _r.triu, "tril": _r.tril, "cumsum": _r.cumsum,
    "gather": _r.gather, "index_select": _r.index_select,
    "var": _d.var, "std": _d.std,
    "masked_fill": _e.masked_fill, "maximum": _e.maximum, "minimum": _e.minimum,
}  # fmt: skip


def _every_name() -> dict[Any, Rule]:
    rules = dict(FUNCTIONS)
    for name, rule in NAMES.items():
        for owner in (torch, _T):
            for spelling in (name, name + "_"):
                if hasattr(owner, spelling):
                    rules.setdefault(getattr(owner, spelling), rule)
    return rules


RULES = _every_name()
