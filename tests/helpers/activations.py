"""Every kind of activation, and the same function by PyTorch."""

from __future__ import annotations

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
}
