"""Blocks of a perceptron's weights and tiles of its activations, as a warp's matrix instructions hold them.

A matrix instruction leaves its results with other threads than the next one wants its operands from, and what moves
them between takes more instructions than the products. Nothing has to move if columns of a tile and the order in which
a product is summed are chosen for it. In `mma.m16n8k8` thread 4 g + t of a warp holds

- of results [16, 16] rows g and g + 8, and there columns 8 a + 2 t + e (a, e = 0, 1),
- of a left operand [16, 16] the same rows, and columns 4 r + t (r = 0 … 3), of a right one rows 4 r + t and columns
  8 a + g,
- of sixteen values in a row, read 16 bytes a thread, those at 4 t + r.

So column 8 a + 2 t + e of a tile holds feature 4 t + 2 e + a (its place), and products over features take them in the
order 4 r + t. `tl.reshape` and `tl.permute` say so, and the compiler finds that they are no work. Of more than one warp
each has a part of the columns, and the same code is right but goes through shared memory.

A width of one is a tile [·, 1], and so are two inputs: products with those are sums, exact and without matrices.
"""

import triton
import triton.language as tl


@triton.jit
def features(B: tl.constexpr):
    """The features in the places of a tile [·, B]."""
    n = tl.arange(0, B)
    if B > 1:
        n = n // 16 * 16 + n % 8 * 2 + n % 16 // 8
    return n


@triton.jit
def by_feature(x):
    """Columns in the order of their features: of a tile, or of a weight's gradient."""
    R: tl.constexpr = x.shape[0]
    B: tl.constexpr = x.shape[1]
    if B > 1:
        x = tl.reshape(tl.permute(tl.reshape(x, [R, B // 16, 2, 8]), [0, 1, 3, 2]), [R, B])
    return x


@triton.jit
def by_place(x):
    """Such columns in the order of their places."""
    R: tl.constexpr = x.shape[0]
    B: tl.constexpr = x.shape[1]
    if B > 1:
        x = tl.reshape(tl.permute(tl.reshape(x, [R, B // 16, 8, 2]), [0, 1, 3, 2]), [R, B])
    return x


@triton.jit
def parts(x, PRECISION: tl.constexpr):
    """A block as products take it: in the matrix units' own type, or as a sum of two of tf32's 11 bits."""
    if PRECISION == "tf32x3":
        big = ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
        found = (big, x - big)
    elif PRECISION == "bf16":
        found = (x.to(tl.bfloat16),)
    else:
        found = (x,)
    return found


@triton.jit
def operands(tiles, B: tl.constexpr, PRECISION: tl.constexpr):
    """The parts of every tile [·, B]; columns are no operands."""
    found = ()
    for t in tl.static_range(len(tiles)):
        found = found + (parts(tiles[t], PRECISION) if B > 1 else (tiles[t],),)
    return found


@triton.jit
def product(total, a, b, PRECISION: tl.constexpr):
    """total + a b. What three products of tf32's leave out is 2^-22 of |a| |b|, the small parts'."""
    if PRECISION == "tf32x3":
        total = tl.dot(a[1], b[0], total, input_precision="tf32")
        total = tl.dot(a[0], b[1], total, input_precision="tf32")
        total = tl.dot(a[0], b[0], total, input_precision="tf32")
    elif PRECISION == "bf16":
        total = tl.dot(a[0], b[0], total)
    else:
        total = tl.dot(a[0], b[0], total, input_precision=PRECISION)
    return total


@triton.jit
def turned(operand):
    """The transposed operand."""
    found = ()
    for t in tl.static_range(len(operand)):
        found = found + (tl.trans(operand[t]),)
    return found


@triton.jit
def summed(operand, PRECISION: tl.constexpr):
    """Columns, by place, in the order in which products go over them; bfloat16's, two at a time, are in it already."""
    R: tl.constexpr = operand[0].shape[0]
    B: tl.constexpr = operand[0].shape[1]
    found = ()
    for t in tl.static_range(len(operand)):
        x = operand[t]
        if PRECISION != "bf16":
            x = tl.reshape(tl.permute(tl.reshape(x, [R, B // 8, 4, 2]), [0, 1, 3, 2]), [R, B])
        found = found + (x,)
    return found


@triton.jit
def weight_block(
    OUT: tl.constexpr, IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, o: tl.constexpr, i: tl.constexpr
):
    """Offsets of a block of a weight [OUT, IN], its mask, and the mask with the padding behind the weight.

    Rows are in the order of a tile's places, columns in that of memory. Where one of them is one, the block is a row
    [1, ·] of the other's places. Of a block that is whole the compiler sees that nothing is masked.
    """
    END: tl.constexpr = (OUT * IN + 3) // 4 * 4
    if BO == 1:
        o_c = i + features(BI)[None, :]
        offsets, m_load, m_store = o_c, o_c < IN, o_c < END
    elif BI == 1:
        o_r = o + features(BO)[None, :]
        offsets = o_r * IN + i
        m_load, m_store = o_r < OUT, offsets < END
    else:
        o_r, o_c = o + features(BO)[:, None], i + tl.arange(0, BI)[None, :]
        offsets = o_r * IN + o_c
        if o + BO <= OUT and i + BI <= IN:
            m_load = tl.full([BO, BI], 1, tl.int1)
        else:
            m_load = (o_r < OUT) & (o_c < IN)
        m_store = m_load
        if END > OUT * IN:
            m_store = m_load | ((o_r == OUT) & (o_c < END - OUT * IN))
    return offsets, m_load, m_store


@triton.jit
def block_over_outputs(
    OUT: tl.constexpr, IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, o: tl.constexpr, i: tl.constexpr
):
    """Offsets and mask of a block for `times_block`; of 16 × 16, [r, g, t, a] as a warp's threads hold it."""
    if BO == 16 and BI == 16:
        r, t = tl.arange(0, 4)[:, None, None, None], tl.arange(0, 4)[None, None, :, None]
        o_r = o + 4 * t + r % 2 * 2 + r // 2
        o_c = i + 2 * tl.arange(0, 8)[None, :, None, None] + tl.arange(0, 2)[None, None, None, :]
        offsets = o_r * IN + o_c
        if o + BO <= OUT and i + BI <= IN:
            mask = tl.full([4, 8, 4, 2], 1, tl.int1)
        else:
            mask = (o_r < OUT) & (o_c < IN)
    else:
        offsets, mask, _ = weight_block(OUT, IN, BO, BI, o, i)
    return offsets, mask


@triton.jit
def bias_block(OUT: tl.constexpr, BO: tl.constexpr, o: tl.constexpr):
    """As `weight_block`, of a bias; a single one takes its padding along."""
    o_c = tl.arange(0, 4) if BO == 1 else o + features(BO)
    return o_c, o_c < OUT, o_c < (OUT + 3) // 4 * 4


@triton.jit
def bias_gradient(d, BO: tl.constexpr):
    """Σ over samples of a tile [BN, BO], as `bias_block` has it."""
    g = tl.sum(d, 0)
    if BO == 1:
        g = tl.where(tl.arange(0, 4) < 1, g, 0.0)
    return g


@triton.jit
def times_transposed(z, x, w, BO: tl.constexpr, BI: tl.constexpr, PRECISION: tl.constexpr):
    """z + x wᵀ: an operand [BN, BI] and a block read by `weight_block`."""
    if BO == 1:
        z += tl.sum(x[0] * w, 1)[:, None]
    elif BI == 1:
        z += x[0] * w
    else:
        z = product(z, summed(x, PRECISION), turned(summed(parts(by_place(w), PRECISION), PRECISION)), PRECISION)
    return z


@triton.jit
def over_outputs(w, BO: tl.constexpr, BI: tl.constexpr, PRECISION: tl.constexpr):
    """A block read by `block_over_outputs` as `times_block` takes it."""
    if BO == 1 or BI == 1:
        found = (w,)
    elif BO == 16 and BI == 16:
        found = ()
        halves = parts(w, PRECISION)
        for t in tl.static_range(len(halves)):
            x = halves[t]
            if PRECISION == "bf16":
                x = tl.permute(tl.reshape(x, [2, 2, 8, 4, 2]), [0, 3, 1, 4, 2])
            else:
                x = tl.permute(x, [0, 2, 3, 1])
            found = found + (tl.reshape(x, [16, 16]),)
    else:
        found = turned(summed(turned(parts(by_place(w), PRECISION)), PRECISION))
    return found


@triton.jit
def times_block(dx, d, w, BO: tl.constexpr, BI: tl.constexpr, PRECISION: tl.constexpr):
    """dx + d w: an operand [BN, BO] and one of `over_outputs`."""
    if BO == 1:
        dx += d[0] * w[0]
    elif BI == 1:
        dx += tl.sum(d[0] * w[0], 1)[:, None]
    else:
        dx = product(dx, summed(d, PRECISION), w, PRECISION)
    return dx


@triton.jit
def weight_gradient(d, x, mask, BO: tl.constexpr, BI: tl.constexpr, PRECISION: tl.constexpr):
    """dᵀ x of two operands [BN, BO] and [BN, BI], as `weight_block` has it."""
    if BO == 1 or BI == 1:
        g = tl.where(mask, tl.sum(d[0] * x[0], 0)[None, :], 0.0)
    else:
        g = by_feature(product(tl.zeros([BO, BI], tl.float32), turned(d), x, PRECISION))
    return g


@triton.jit
def weight_gradient_dot(d, d_dot, x, x_dot, mask, BO: tl.constexpr, BI: tl.constexpr, PRECISION: tl.constexpr):
    """ḋᵀ x + dᵀ ẋ likewise."""
    if BO == 1 or BI == 1:
        h = tl.where(mask, tl.sum(d_dot[0] * x[0] + d[0] * x_dot[0], 0)[None, :], 0.0)
    else:
        h = product(tl.zeros([BO, BI], tl.float32), turned(d_dot), x, PRECISION)
        h = by_feature(product(h, turned(d), x_dot, PRECISION))
    return h
