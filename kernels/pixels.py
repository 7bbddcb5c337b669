"""Where the pixels of a task's images lie; the mean over an image's pixels. Images are [N, H, W, C], channels last.

Pixels of all images of a task are numbered through, row by row: (n H + h) W + w. A convolution's geometry is the tuple
G = (H, W, C, HO, WO, OUT, KERNEL, STRIDE, PAD), from images [H, W, C] to [HO, WO, OUT].
"""

import triton
import triton.language as tl

from .linear import tile_of


@triton.jit
def share_of(SHARES: tl.constexpr, COLUMNS: tl.constexpr, BC: tl.constexpr):
    """This program's task, which of the SHARES of that task's rows it takes, and its columns."""
    ACROSS: tl.constexpr = (COLUMNS + BC - 1) // BC
    i_program = tl.program_id(0)
    o_c = i_program % ACROSS * BC + tl.arange(0, BC)
    return (i_program // (ACROSS * SHARES)).to(tl.int64), i_program // ACROSS % SHARES, o_c


@triton.jit
def pixel(o_r, H: tl.constexpr, W: tl.constexpr):
    """Image, row and column of pixels by number."""
    return o_r // (H * W), o_r // W % H, o_r % W


@triton.jit
def patches(p_x, o_r, at, N: tl.constexpr, G: tl.constexpr, BK: tl.constexpr):
    """[BR, BK] values of x under a filter's values at … at + BK, taps × channels, for output pixels o_r; zero outside.

    Where BK divides C they belong to one tap, and only channels differ along a row: loads are as wide as they can be,
    if the channel is a difference: of a remainder Triton 3.6 does not know what divides it, and loads singly. Where it
    does not divide, loads are single anyway, and a remainder takes fewer registers (a difference: 24 bytes of stack,
    84×84×3→32, tangents, sm_90, float32).
    """
    H: tl.constexpr = G[0]
    W: tl.constexpr = G[1]
    C: tl.constexpr = G[2]
    KERNEL: tl.constexpr = G[6]
    n, h, w = pixel(o_r, G[3], G[4])
    h, w = h * G[7] - G[8], w * G[7] - G[8]
    m_r = o_r < N * G[3] * G[4]
    if C % BK == 0:
        tap = at // C
        y, x = h + tap // KERNEL, w + tap % KERNEL
        mask = (m_r & (y >= 0) & (y < H) & (x >= 0) & (x < W))[:, None]
        offsets = (((n * H + y) * W + x) * C)[:, None] + (at - tap * C + tl.arange(0, BK))[None, :]
    else:
        o_k = at + tl.arange(0, BK)
        tap = o_k // C
        y, x = h[:, None] + (tap // KERNEL)[None, :], w[:, None] + (tap % KERNEL)[None, :]
        mask = m_r[:, None] & (tap < KERNEL * KERNEL)[None, :] & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        offsets = ((n * H)[:, None] + y) * (W * C) + x * C + (o_k % C)[None, :]
    return tl.load(p_x + offsets, mask=mask, other=0.0)


@triton.jit
def covering(p_dz, o_r, at, N: tl.constexpr, G: tl.constexpr, BK: tl.constexpr):
    """[BR, BK] values of dz at the output pixels whose tap lies on input pixels o_r, taps × filters at … at + BK."""
    HO: tl.constexpr = G[3]
    WO: tl.constexpr = G[4]
    OUT: tl.constexpr = G[5]
    KERNEL: tl.constexpr = G[6]
    STRIDE: tl.constexpr = G[7]
    n, h, w = pixel(o_r, G[0], G[1])
    h, w = h + G[8], w + G[8]
    m_r = o_r < N * G[0] * G[1]
    if OUT % BK == 0:
        tap = at // OUT
        y, x = h - tap // KERNEL, w - tap % KERNEL
        mask = (m_r & (y >= 0) & (y < HO * STRIDE) & (x >= 0) & (x < WO * STRIDE))[:, None]
        if STRIDE > 1:
            mask = mask & ((y % STRIDE == 0) & (x % STRIDE == 0))[:, None]
        o_o = at - tap * OUT + tl.arange(0, BK)
        offsets = (((n * HO + y // STRIDE) * WO + x // STRIDE) * OUT)[:, None] + o_o[None, :]
    else:
        o_k = at + tl.arange(0, BK)
        tap = o_k // OUT
        y, x = h[:, None] - (tap // KERNEL)[None, :], w[:, None] - (tap % KERNEL)[None, :]
        mask = m_r[:, None] & (tap < KERNEL * KERNEL)[None, :] & (y >= 0) & (y < HO * STRIDE) & (x >= 0)
        mask = mask & (x < WO * STRIDE)
        if STRIDE > 1:
            mask = mask & (y % STRIDE == 0) & (x % STRIDE == 0)
        offsets = ((n * HO)[:, None] + y // STRIDE) * (WO * OUT) + x // STRIDE * OUT + (o_k % OUT)[None, :]
    return tl.load(p_dz + offsets, mask=mask, other=0.0)


@triton.jit
def filters(p_w, at, o_c, G: tl.constexpr, BK: tl.constexpr):
    """[BK, BC] weights of channels o_c, for taps × filters at … at + BK, as `covering`; W is [OUT, taps, C]."""
    C: tl.constexpr = G[2]
    OUT: tl.constexpr = G[5]
    TAPS: tl.constexpr = G[6] * G[6]
    o_k = at + tl.arange(0, BK)
    if OUT % BK == 0:
        tap = at // OUT
        rows = (at - tap * OUT + tl.arange(0, BK)) * (TAPS * C) + tap * C
    else:
        rows = o_k % OUT * (TAPS * C) + o_k // OUT * C
    mask = (o_k < TAPS * OUT)[:, None] & (o_c < C)[None, :]
    return tl.load(p_w + rows[:, None] + o_c[None, :], mask=mask, other=0.0)


@triton.jit
def _mean(p_x, p_y, o_n, o_c, N: tl.constexpr, PIXELS: tl.constexpr, C: tl.constexpr):
    mask = (o_n < N)[:, None] & (o_c < C)[None, :]
    total = tl.zeros(mask.shape, tl.float32)
    for i in range(PIXELS):
        total += tl.load(p_x + (o_n * PIXELS + i)[:, None] * C + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(p_y + o_n[:, None] * C + o_c[None, :], (total / PIXELS).to(p_y.dtype.element_ty), mask=mask)


@triton.jit
def pixel_mean_kernel(
    p_x, p_x_dot, p_y, p_y_dot, N: tl.constexpr, PIXELS: tl.constexpr, C: tl.constexpr, BN: tl.constexpr,
    BC: tl.constexpr, PRIMAL: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """y [T, N, C] = mean of x [T, N, PIXELS, C]; DUAL the same of their tangents."""
    i_task, o_n, o_c = tile_of(N, C, BN, BC)
    at_x, at_y = i_task * (N * PIXELS * C), i_task * (N * C)
    if PRIMAL:
        _mean(p_x + at_x, p_y + at_y, o_n, o_c, N, PIXELS, C)
    if DUAL:
        _mean(p_x_dot + at_x, p_y_dot + at_y, o_n, o_c, N, PIXELS, C)


@triton.jit
def _spread(p_dy, p_dx, o_r, o_c, N: tl.constexpr, PIXELS: tl.constexpr, C: tl.constexpr):
    mask = (o_r < N * PIXELS)[:, None] & (o_c < C)[None, :]
    dy = tl.load(p_dy + (o_r // PIXELS)[:, None] * C + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(p_dx + o_r[:, None] * C + o_c[None, :], (dy / PIXELS).to(p_dx.dtype.element_ty), mask=mask)


@triton.jit
def pixel_spread_kernel(
    p_dy, p_dy_dot, p_dx, p_dx_dot, N: tl.constexpr, PIXELS: tl.constexpr, C: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """The transpose: dx [T, N, PIXELS, C] = dy / PIXELS."""
    i_task, o_r, o_c = tile_of(N * PIXELS, C, BR, BC)
    at_x, at_y = i_task * (N * PIXELS * C), i_task * (N * C)
    _spread(p_dy + at_y, p_dx + at_x, o_r, o_c, N, PIXELS, C)
    if DUAL:
        _spread(p_dy_dot + at_y, p_dx_dot + at_x, o_r, o_c, N, PIXELS, C)
