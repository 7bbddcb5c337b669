"""Which rule each PyTorch module, function and method has."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .activations import (
    dropout,
    elu,
    elu_module,
    gelu,
    leaky,
    leaky_module,
    relu,
    relu_module,
    sigmoid,
    sigmoid_module,
    silu,
    silu_module,
    sin,
    softplus,
    softplus_module,
    tanh,
    tanh_module,
)
from .arithmetic import add, div, mul, neg, rsub, sub
from .base import Rule
from .layers import conv2d, conv2d_module, embedding, embedding_module, linear, linear_module, lstm_cell_module
from .norms import batch_norm_module, group_norm_module, group_norm_rule, layer_norm_module, layer_norm_rule
from .pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
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

MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear_module,
    nn.Conv2d: conv2d_module,
    nn.Embedding: embedding_module,
    nn.LSTMCell: lstm_cell_module,
    nn.BatchNorm1d: batch_norm_module,
    nn.BatchNorm2d: batch_norm_module,
    nn.LayerNorm: layer_norm_module,
    nn.GroupNorm: group_norm_module,
    nn.ReLU: relu_module,
    nn.LeakyReLU: leaky_module,
    nn.ELU: elu_module,
    nn.GELU: lambda to, m, x: gelu(to, x, m.approximate),
    nn.SiLU: silu_module,
    nn.Tanh: tanh_module,
    nn.Sigmoid: sigmoid_module,
    nn.Softplus: softplus_module,
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
    F.relu: relu,
    torch.relu: relu,
    F.leaky_relu: leaky,
    F.elu: elu,
    F.gelu: gelu,
    F.silu: silu,
    torch.tanh: tanh,
    F.tanh: tanh,
    torch.sigmoid: sigmoid,
    F.sigmoid: sigmoid,
    F.softplus: softplus,
    torch.sin: sin,
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
    "neg": neg, "relu": relu, "relu_": relu, "tanh": tanh, "tanh_": tanh, "sigmoid": sigmoid,
    "sigmoid_": sigmoid, "sin": sin, "view": reshape, "reshape": reshape, "flatten": flatten, "squeeze": squeeze,
    "unsqueeze": unsqueeze, "permute": permute, "transpose": transpose, "mean": mean, "sum": total,
    "chunk": chunk, "split": split, "unbind": unbind, "contiguous": identity, "clone": identity,
}  # fmt: skip
