"""Rules of activations and dropout."""

from __future__ import annotations

import math

from fastmeta.ops.activation import Activation
from fastmeta.ops.arithmetic import Add, Mul
from fastmeta.ops.dropout import Dropout
from fastmeta.ops.shape import Reshape

from .base import Lower, NotKnown, Rule, Slot


def act(to: Lower, x: Slot, kind: str, *args: float) -> Slot:
    return to.emit(Activation(kind, args), x)


def gelu(to: Lower, x: Slot, approximate: str = "none") -> Slot:
    return act(to, x, "gelu_tanh" if approximate == "tanh" else "gelu")


def prelu(to: Lower, x: Slot, weight: Slot) -> Slot:
    """max(x, 0) + weight min(x, 0), of slope `weight` at zero as PyTorch's."""
    if len(weight.shape) > 1 or (weight.shape not in ((), (1,)) and len(x.shape) < 2):
        raise NotKnown(f"prelu of {list(x.shape)} with weights {list(weight.shape)}")
    if weight.shape not in ((), (1,)):
        weight = to.emit(Reshape((math.prod(weight.shape), *(1,) * (len(x.shape) - 2))), weight)
    below = to.emit(Mul(), act(to, x, "clamp", -math.inf, 0.0), weight)
    y = to.emit(Add(), act(to, x, "relu"), below)
    return y if y.shape == x.shape else to.emit(Reshape(x.shape), y)


def dropout(
    to: Lower,
    x: Slot,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,  # noqa: ARG001  Builder replaces what is written into
) -> Slot:
    if not training or p == 0:
        return x
    return to.emit(Dropout(p, to.next_layer()), x, to.keys())


def _activation(kind: str, **defaults: float) -> Rule:
    """The rule of an activation with these parameters."""

    def rule(to: Lower, x: Slot, *args: float, inplace: bool = False, **options: float) -> Slot:  # noqa: ARG001
        if unknown := sorted(options.keys() - defaults.keys()):
            raise NotKnown(f"{kind} with {', '.join(unknown)}")
        values = {**defaults, **dict(zip(defaults, args, strict=False)), **options}
        return act(to, x, kind, *(float(values[k]) for k in defaults))

    return rule


relu = _activation("relu")
leaky = _activation("leaky_relu", negative_slope=0.01)
elu = _activation("elu", alpha=1.0)
silu = _activation("silu")
tanh = _activation("tanh")
sigmoid = _activation("sigmoid")
softplus = _activation("softplus", beta=1.0, threshold=20.0)
sin = _activation("sin")
