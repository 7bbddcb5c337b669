"""Every kind of activation, and the same function by PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from fastmeta.ops.activation import Activation

CASES = {
    "identity": (Activation("identity"), lambda x: x * 1),
    "relu": (Activation("relu"), F.relu),
    "leaky_relu": (Activation("leaky_relu", (0.01,)), F.leaky_relu),
    "leaky_relu, negative slope": (Activation("leaky_relu", (-0.3,)), lambda x: F.leaky_relu(x, -0.3)),
    "elu": (Activation("elu", (1.0,)), F.elu),
    "elu, alpha 0.7": (Activation("elu", (0.7,)), lambda x: F.elu(x, 0.7)),
    "gelu": (Activation("gelu"), F.gelu),
    "gelu_tanh": (Activation("gelu_tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": (Activation("silu"), F.silu),
    "tanh": (Activation("tanh"), torch.tanh),
    "sigmoid": (Activation("sigmoid"), torch.sigmoid),
    "softplus": (Activation("softplus", (1.0, 20.0)), F.softplus),
    "softplus, threshold 2": (Activation("softplus", (3.0, 2.0)), lambda x: F.softplus(x, 3.0, 2.0)),
    "sin": (Activation("sin"), torch.sin),
    "softsign": (Activation("softsign"), F.softsign),
    "hardtanh": (Activation("hardtanh", (-0.5, 2.0)), lambda x: F.hardtanh(x, -0.5, 2.0)),
    "relu6": (Activation("hardtanh", (0.0, 6.0)), F.relu6),
    "clamp": (Activation("clamp", (-0.5, 2.0)), lambda x: torch.clamp(x, -0.5, 2.0)),
    "clamp from below": (Activation("clamp", (0.0, math.inf)), lambda x: torch.clamp(x, min=0)),
    "hardswish": (Activation("hardswish"), F.hardswish),
    "mish": (Activation("mish"), lambda x: x * F.softplus(x).tanh()),
    "selu": (Activation("selu"), F.selu),
    "logsigmoid": (Activation("logsigmoid"), lambda x: -F.softplus(-x)),
    "abs": (Activation("abs"), torch.abs),
    "atan": (Activation("atan"), torch.atan),
    "cos": (Activation("cos"), torch.cos),
    "erf": (Activation("erf"), torch.erf),
    "huber": (Activation("huber", (0.7,)), lambda x: torch.where(x.abs() < 0.7, x * x / 2, 0.7 * (x.abs() - 0.35))),
    "square": (Activation("pow", (2.0,)), torch.square),
}
# those with a pole, an edge or more than a float holds, and where they are looked at
ON_AN_INTERVAL = {
    "cosh": (Activation("cosh"), torch.cosh, (-5.0, 5.0)),
    "sinh": (Activation("sinh"), torch.sinh, (-5.0, 5.0)),
    "exp": (Activation("exp"), torch.exp, (-9.0, 9.0)),
    "expm1": (Activation("expm1"), torch.expm1, (-9.0, 9.0)),
    "log": (Activation("log"), torch.log, (0.1, 9.0)),
    "log1p": (Activation("log1p"), torch.log1p, (-0.9, 9.0)),
    "cube": (Activation("pow", (3.0,)), lambda x: x**3, (-9.0, 9.0)),
    "power 0": (Activation("pow", (0.0,)), lambda x: x.pow(0), (-9.0, 9.0)),
    "power 1.5": (Activation("pow", (1.5,)), lambda x: x**1.5, (0.1, 9.0)),
    "power 0.5": (Activation("pow", (0.5,)), lambda x: x**0.5, (0.1, 9.0)),
    "power -1": (Activation("pow", (-1.0,)), lambda x: x**-1, (-9.0, -0.1)),
    "reciprocal": (Activation("reciprocal"), torch.reciprocal, (-9.0, -0.1)),
    "rsqrt": (Activation("rsqrt"), torch.rsqrt, (0.1, 9.0)),
    "sqrt": (Activation("sqrt"), torch.sqrt, (0.1, 9.0)),
    "tan": (Activation("tan"), torch.tan, (-1.4, 1.4)),
}
