"""Pieces of a linear layer inside kernels: blocks of weights and biases in a row of P values, and matrix products.

A weight [OUT, IN] is loaded as it lies, output-major: transposing happens on chip, and loads stay 128 bits wide. A
block [BO, BI] of it begins at row `o` and column `i`.
"""

import triton
import triton.language as tl


@triton.jit
def accumulate(total, a, b, PRECISION: tl.constexpr):
    """total + a b in float32; PRECISION is `tl.dot`'s input_precision, or "bf16" for operands rounded to bfloat16."""
    if PRECISION == "bf16":
        total = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a b, computed after all that comes before it."""
    tl.debug_barrier()  # or the loads of several products are put in front of all of them, and fill the registers
    return accumulate(tl.zeros([a.shape[0], b.shape[1]], tl.float32), a, b, PRECISION)


@triton.jit
def weight_block(OUT: tl.constexpr, IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, o=0, i=0):
    """Offsets, mask of the weight, and mask with the padding behind it (to 16 bytes), which stores fill with zero."""
    o_r, o_c = o + tl.arange(0, BO)[:, None], i + tl.arange(0, BI)[None, :]
    mask = (o_r < OUT) & (o_c < IN)
    gap: tl.constexpr = (4 - (OUT * IN) % 4) % 4  # where there is one, OUT is no multiple of 4 and so smaller than BO
    return o_r * IN + o_c, mask, mask | ((o_r == OUT) & (o_c < gap))


@triton.jit
def bias_block(OUT: tl.constexpr, BO: tl.constexpr, o=0):
    """The same of a bias."""
    o_c = o + tl.arange(0, BO)
    return o_c, o_c < OUT, o_c < (OUT + 3) // 4 * 4


@triton.jit
def weight(p, OUT: tl.constexpr, IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, o=0, i=0):
    """[BO, BI], zero outside."""
    offsets, mask, _ = weight_block(OUT, IN, BO, BI, o, i)
    return tl.load(p + offsets, mask=mask, other=0.0)


@triton.jit
def bias(p, OUT: tl.constexpr, BO: tl.constexpr, o=0):
    """[BO], zero outside."""
    offsets, mask, _ = bias_block(OUT, BO, o)
    return tl.load(p + offsets, mask=mask, other=0.0)
