"""Pointwise activations inside kernels: value, first and second derivative, as in `fastmeta/ops/activation.py`.

`A` and `B` are the arguments of a kind: the negative slope of leaky_relu, beta and threshold of softplus, and the
frequency of sin, f(x) = sin(A x) (Sitzmann et al. 2020).
"""

import triton
import triton.language as tl

KINDS = ("identity", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "softplus", "sin")

# A kind inside kernels is its place in KINDS: Triton 3.6 passes no strings out of tuples on to helpers.
IDENTITY = 0
RELU = tl.constexpr(1)
LEAKY_RELU = tl.constexpr(2)
GELU = tl.constexpr(3)
GELU_TANH = tl.constexpr(4)
SILU = tl.constexpr(5)
TANH = tl.constexpr(6)
SIGMOID = tl.constexpr(7)
SOFTPLUS = tl.constexpr(8)
SIN = tl.constexpr(9)


@triton.jit
def _tanh(x):
    # 1 − e cancels near zero, where the series has a relative error below 1e-7
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    s = x * x
    near = x * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0)))))
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0.0, -far, far))


@triton.jit
def _normal_cdf(x):
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _normal_pdf(x):
    return tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton.jit
def _gelu_inner(x):
    """The argument of gelu_tanh's tanh, and its first and second derivative (Hendrycks & Gimpel 2016)."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    u1 = 0.7978845608028654 * (1.0 + 0.134145 * x * x)
    u2 = 0.7978845608028654 * 0.26829 * x
    return u, u1, u2


@triton.jit
def act_value(x, KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """f(x). Comparisons are written so that NaN stays NaN: the hardware's maximum would drop it."""
    if KIND == RELU:
        y = tl.where(x <= 0.0, 0.0, x)
    elif KIND == LEAKY_RELU:
        y = tl.where(x <= 0.0, x * A, x)
    elif KIND == GELU:
        y = x * _normal_cdf(x)
    elif KIND == GELU_TANH:
        u, u1, u2 = _gelu_inner(x)
        y = 0.5 * x * (1.0 + _tanh(u))
    elif KIND == SILU:
        y = x * tl.sigmoid(x)
    elif KIND == TANH:
        y = _tanh(x)
    elif KIND == SIGMOID:
        y = tl.sigmoid(x)
    elif KIND == SOFTPLUS:
        t = x * A
        soft = (tl.where(t > 0.0, t, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(t)))) / A
        y = tl.where(t > B, x, soft)
    elif KIND == SIN:
        y = tl.sin(A * x)
    else:
        y = x
    return y


@triton.jit
def act_slope(x, KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """f'(x); 0 at relu's kink, as PyTorch has it."""
    if KIND == RELU:
        d = tl.where(x > 0.0, 1.0, 0.0)
    elif KIND == LEAKY_RELU:
        d = tl.where(x > 0.0, 1.0, A)
    elif KIND == GELU:
        d = _normal_cdf(x) + x * _normal_pdf(x)
    elif KIND == GELU_TANH:
        u, u1, u2 = _gelu_inner(x)
        t = _tanh(u)
        d = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * u1
    elif KIND == SILU:
        s = tl.sigmoid(x)
        d = s * (1.0 + x * (1.0 - s))
    elif KIND == TANH:
        t = _tanh(x)
        d = 1.0 - t * t
    elif KIND == SIGMOID:
        s = tl.sigmoid(x)
        d = s * (1.0 - s)
    elif KIND == SOFTPLUS:
        d = tl.where(x * A > B, 1.0, tl.sigmoid(x * A))
    elif KIND == SIN:
        d = A * tl.cos(A * x)
    else:
        d = tl.full(x.shape, 1.0, x.dtype)
    return d


@triton.jit
def act_curvature(x, KIND: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """f''(x); 0 where f is piecewise linear."""
    if KIND == GELU:
        c = _normal_pdf(x) * (2.0 - x * x)
    elif KIND == GELU_TANH:
        u, u1, u2 = _gelu_inner(x)
        t = _tanh(u)
        c = (1.0 - t * t) * (u1 + 0.5 * x * (u2 - 2.0 * t * u1 * u1))
    elif KIND == SILU:
        s = tl.sigmoid(x)
        c = s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))
    elif KIND == TANH:
        t = _tanh(x)
        c = -2.0 * t * (1.0 - t * t)
    elif KIND == SIGMOID:
        s = tl.sigmoid(x)
        c = s * (1.0 - s) * (1.0 - 2.0 * s)
    elif KIND == SOFTPLUS:
        s = tl.sigmoid(x * A)
        c = tl.where(x * A > B, 0.0, A * s * (1.0 - s))
    elif KIND == SIN:
        c = -A * A * tl.sin(A * x)
    else:
        c = tl.full(x.shape, 0.0, x.dtype)
    return c
