"""Rules of activations and dropout."""

from __future__ import annotations

from fastmeta.ops.activation import Activation
from fastmeta.ops.dropout import Dropout

from .base import Lower, NotKnown, Rule, Slot


def act(to: Lower, x: Slot, kind: str, *args: float) -> Slot:
    return to.emit(Activation(kind, args), x)


def gelu(to: Lower, x: Slot, approximate: str = "none") -> Slot:
    return act(to, x, "gelu_tanh" if approximate == "tanh" else "gelu")


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
