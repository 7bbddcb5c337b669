"""Which rule each PyTorch function has, in all the names under which it is called."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .activations import dropout, elu, gelu, leaky, relu, sigmoid, silu, sin, softplus, tanh
from .arithmetic import add, div, mul, neg, rsub, sub
from .base import Rule
from .layers import conv2d, embedding, linear
from .norms import batch_norm, group_norm_rule, layer_norm_rule
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

_T: Any = torch.Tensor

FUNCTIONS: dict[Any, Rule] = {
    F.linear: linear,
    torch.conv2d: conv2d,
    F.embedding: embedding,
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm_rule,
    F.group_norm: group_norm_rule,
    F.relu: relu,
    F.leaky_relu: leaky,
    F.elu: elu,
    F.gelu: gelu,
    F.silu: silu,
    F.softplus: softplus,
    F.dropout: dropout,
    F.max_pool2d: max_pool2d,
    F.avg_pool2d: avg_pool2d,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    torch.cat: cat,
    torch.concat: cat,
    torch.rsub: rsub,
    _T.__getitem__: getitem,
    _T.clone: identity,
    _T.contiguous: identity,
    _T.detach: identity,
    _T.view: reshape,
}

# as torch.name, as a method, and with a trailing underscore in place
NAMES: dict[str, Rule] = {
    "relu": relu, "tanh": tanh, "sigmoid": sigmoid, "sin": sin, "add": add, "sub": sub, "mul": mul, "div": div,
    "neg": neg, "reshape": reshape, "flatten": flatten, "squeeze": squeeze, "unsqueeze": unsqueeze, "permute": permute,
    "transpose": transpose, "mean": mean, "sum": total, "chunk": chunk, "split": split, "unbind": unbind,
}  # fmt: skip


def _every_name() -> dict[Any, Rule]:
    rules = dict(FUNCTIONS)
    for name, rule in NAMES.items():
        for owner in (torch, _T):
            for spelling in (name, name + "_"):
                if hasattr(owner, spelling):
                    rules[getattr(owner, spelling)] = rule
    return rules


RULES = _every_name()
