"""Pieces of a linear layer inside kernels: blocks of weights and biases in a row of P values, and matrix products.

A weight [OUT, IN] is loaded as it lies, output-major: transposing happens on chip, and loads stay 128 bits wide.
"""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a b in float32; PRECISION is `tl.dot`'s input_precision, or "bf16" for operands rounded to bfloat16."""
    tl.debug_barrier()  # or the loads of several products are put in front of all of them, and fill the registers
    if PRECISION == "bf16":
        product = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        product = tl.dot(a, b, input_precision=PRECISION)
    return product


@triton.jit
def weight_block(OUT: tl.constexpr, IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):
    """Offsets, mask of the weight, and mask with the padding behind it (to 16 bytes), which stores fill with zero."""
    o_r, o_c = tl.arange(0, BO)[:, None], tl.arange(0, BI)[None, :]
    mask = (o_r < OUT) & (o_c < IN)
    gap: tl.constexpr = (4 - (OUT * IN) % 4) % 4  # where there is one, OUT is no multiple of 4 and so smaller than BO
    return o_r * IN + o_c, mask, mask | ((o_r == OUT) & (o_c < gap))


@triton.jit
def bias_block(OUT: tl.constexpr, BO: tl.constexpr):
    """The same of a bias."""
    o_c = tl.arange(0, BO)
    return o_c, o_c < OUT, o_c < (OUT + 3) // 4 * 4


@triton.jit
def weight(p, OUT: tl.constexpr, IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):
    """[BO, BI], zero outside."""
    offsets, mask, _ = weight_block(OUT, IN, BO, BI)
    return tl.load(p + offsets, mask=mask, other=0.0)


@triton.jit
def bias(p, OUT: tl.constexpr, BO: tl.constexpr):
    """[BO], zero outside."""
    offsets, mask, _ = bias_block(OUT, BO)
    return tl.load(p + offsets, mask=mask, other=0.0)
