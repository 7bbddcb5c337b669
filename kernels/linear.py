"""Linear layers. Pieces for the kernels of `mlp_loop`; below them, kernels of one layer of all tasks, of any width.

A weight [OUT, IN] is loaded as it lies, output-major: transposing happens on chip, and loads stay 128 bits wide. A
block [BO, BI] of it begins at row `o` and column `i`.
The kernels of one layer take T tasks' rows of φ, `row` × 4 values apart (0: all read θ); the weight lies at `w_at` × 4,
its bias BIAS values behind it (0: none). Other rows of parameters are P values. A program makes one tile of one task.
Tensors are [T, N, IN] and [T, N, OUT], contiguous.
`row` and `w_at` count fours of values: of a product by 4 the compiler knows that it is a multiple of 4, and loads 16
bytes at a time; of an argument it does not, whatever hint it is given.
"""

import triton
import triton.language as tl

from .activation import IDENTITY, act_curvature, act_slope, act_value
from .sink import deliver

NO_ACT = tl.constexpr(IDENTITY)


@triton.jit
def accumulate(total, a, b, PRECISION: tl.constexpr):
    """total + a b in float32; PRECISION is `tl.dot`'s input_precision, or "bf16" for operands rounded to bfloat16.

    Operands may be stored in bfloat16.
    """
    if PRECISION == "bf16":
        total = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    else:
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
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


@triton.jit
def matrix(p, o_r, o_c, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Block of a [ROWS, COLUMNS] matrix at rows o_r and columns o_c, zero outside."""
    mask = (o_r < ROWS)[:, None] & (o_c < COLUMNS)[None, :]
    return tl.load(p + o_r[:, None] * COLUMNS + o_c[None, :], mask=mask, other=0.0)


@triton.jit
def turned(p, o_c, o_r, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The transpose of such a block, loaded so: where `tl.trans` feeds a product, pipelined loads are 4 bytes wide."""
    mask = (o_c < COLUMNS)[:, None] & (o_r < ROWS)[None, :]
    return tl.load(p + o_c[:, None] + o_r[None, :] * COLUMNS, mask=mask, other=0.0)


@triton.jit
def rows_of(p, o_r, o_c, mask, COLUMNS: tl.constexpr):
    """The same in float32, with a mask of its own."""
    return tl.load(p + o_r[:, None] * COLUMNS + o_c[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_matrix(p, block, o_r, o_c, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Writes such a block, in the tensor's own type."""
    mask = (o_r < ROWS)[:, None] & (o_c < COLUMNS)[None, :]
    tl.store(p + o_r[:, None] * COLUMNS + o_c[None, :], block.to(p.dtype.element_ty), mask=mask)


@triton.jit
def tile_of(ROWS: tl.constexpr, COLUMNS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """This program's task, and rows and columns of its tile of that task's [ROWS, COLUMNS] result, row by row."""
    ACROSS: tl.constexpr = (COLUMNS + BC - 1) // BC
    TILES: tl.constexpr = (ROWS + BR - 1) // BR * ACROSS
    i_tile = tl.program_id(0) % TILES
    o_r = i_tile // ACROSS * BR + tl.arange(0, BR)
    o_c = i_tile % ACROSS * BC + tl.arange(0, BC)
    return (tl.program_id(0) // TILES).to(tl.int64), o_r, o_c


@triton.jit(do_not_specialize=["row", "w_at"])
def linear_forward_kernel(
    p_phi, p_v, p_x, p_x_dot, p_z, p_y, p_z_dot, p_y_dot, row, w_at, N: tl.constexpr, IN: tl.constexpr,
    OUT: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, PRIMAL: tl.constexpr, DUAL: tl.constexpr,
    STORE_Y: tl.constexpr, X_MOVES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """z = x Wᵀ + b and y = f(z) [T, N, OUT]; DUAL their tangents along v and x_dot too. Without PRIMAL z is read.

    Without STORE_Y z is y: the same tensor holds both.
    """
    i_task, o_n, o_o = tile_of(N, OUT, BN, BO)
    p_w = p_phi + i_task * (row * 4) + w_at * 4
    p_w_dot = p_v + i_task * P + w_at * 4
    p_x += i_task * (N * IN)
    p_x_dot += i_task * (N * IN)
    z, z_dot = tl.zeros([BN, BO], tl.float32), tl.zeros([BN, BO], tl.float32)
    for at in range(0, IN, BI):
        o_i = at + tl.arange(0, BI)
        x = matrix(p_x, o_n, o_i, N, IN)
        if PRIMAL or X_MOVES:
            w = tl.trans(matrix(p_w, o_o, o_i, OUT, IN))
        if PRIMAL:
            z = accumulate(z, x, w, PRECISION)
        if DUAL:
            z_dot = accumulate(z_dot, x, tl.trans(matrix(p_w_dot, o_o, o_i, OUT, IN)), PRECISION)
        if X_MOVES:
            z_dot = accumulate(z_dot, matrix(p_x_dot, o_n, o_i, N, IN), w, PRECISION)
    at_task = i_task * (N * OUT)
    if PRIMAL:
        if BIAS != 0:
            z += tl.load(p_w + BIAS + o_o, mask=o_o < OUT, other=0.0)[None, :]
        store_matrix(p_z + at_task, z, o_n, o_o, N, OUT)
        if STORE_Y:
            store_matrix(p_y + at_task, act_value(z, ACT, A, B), o_n, o_o, N, OUT)
    if DUAL:
        if BIAS != 0:
            z_dot += tl.load(p_w_dot + BIAS + o_o, mask=o_o < OUT, other=0.0)[None, :]
        store_matrix(p_z_dot + at_task, z_dot, o_n, o_o, N, OUT)
        if STORE_Y:
            if not PRIMAL:
                z = matrix(p_z + at_task, o_n, o_o, N, OUT)
            store_matrix(p_y_dot + at_task, act_slope(z, ACT, A, B) * z_dot, o_n, o_o, N, OUT)


@triton.jit(do_not_specialize=["row", "w_at"])
def linear_backward_kernel(
    p_phi, p_v, p_dz, p_dz_dot, p_z, p_z_dot, p_dx, p_dx_dot, row, w_at, N: tl.constexpr, IN: tl.constexpr,
    OUT: tl.constexpr, P: tl.constexpr, ACT: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, DUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Cotangent f'(z) (dz W) [T, N, IN] of the layer before's z, whose activation f is; DUAL its tangent too."""
    i_task, o_n, o_i = tile_of(N, IN, BN, BI)
    p_w = p_phi + i_task * (row * 4) + w_at * 4
    p_w_dot = p_v + i_task * P + w_at * 4
    p_dz += i_task * (N * OUT)
    p_dz_dot += i_task * (N * OUT)
    dx, dx_dot = tl.zeros([BN, BI], tl.float32), tl.zeros([BN, BI], tl.float32)
    for at in range(0, OUT, BO):
        o_o = at + tl.arange(0, BO)
        dz = matrix(p_dz, o_n, o_o, N, OUT)
        w = matrix(p_w, o_o, o_i, OUT, IN)
        dx = accumulate(dx, dz, w, PRECISION)
        if DUAL:
            dx_dot = accumulate(dx_dot, matrix(p_dz_dot, o_n, o_o, N, OUT), w, PRECISION)
            dx_dot = accumulate(dx_dot, dz, matrix(p_w_dot, o_o, o_i, OUT, IN), PRECISION)
    at_task = i_task * (N * IN)
    if ACT != NO_ACT:
        z = matrix(p_z + at_task, o_n, o_i, N, IN)
        slope = act_slope(z, ACT, A, B)
        if DUAL:
            z_dot = matrix(p_z_dot + at_task, o_n, o_i, N, IN)
            dx_dot = slope * dx_dot + act_curvature(z, ACT, A, B) * z_dot * dx
        dx = slope * dx
    store_matrix(p_dx + at_task, dx, o_n, o_i, N, IN)
    if DUAL:
        store_matrix(p_dx_dot + at_task, dx_dot, o_n, o_i, N, IN)


@triton.jit(do_not_specialize=["row", "w_at", "first", "last"])
def linear_weight_kernel(
    p_phi, p_dz, p_dz_dot, p_x, p_x_dot, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, row, w_at, first, last,
    N: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr,
    BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, DUAL: tl.constexpr,
    X_MOVES: tl.constexpr, SINK: tl.constexpr, RULE: tl.constexpr, HYPER: tl.constexpr, STATES: tl.constexpr,
    LR_EACH: tl.constexpr, DIRECTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dW = dzᵀ x and db = Σ dz, or with DUAL their tangents, taken straight to where `sink.py` says."""
    i_task, o_o, o_i = tile_of(OUT, IN, BO, BI)
    p_dz += i_task * (N * OUT)
    p_dz_dot += i_task * (N * OUT)
    p_x += i_task * (N * IN)
    p_x_dot += i_task * (N * IN)
    g, g_bias = tl.zeros([BO, BI], tl.float32), tl.zeros([BO], tl.float32)
    for at in range(0, N, BN):
        o_n = at + tl.arange(0, BN)
        moving = turned(p_dz_dot if DUAL else p_dz, o_o, o_n, N, OUT)
        g = accumulate(g, moving, matrix(p_x, o_n, o_i, N, IN), PRECISION)
        g_bias += tl.sum(moving.to(tl.float32), 1)
        if X_MOVES:
            g = accumulate(g, turned(p_dz, o_o, o_n, N, OUT), matrix(p_x_dot, o_n, o_i, N, IN), PRECISION)
    w_at *= 4
    p_phi += i_task * (row * 4) + w_at
    p_to += i_task * P + w_at
    p_with += i_task * P + w_at
    p_state += i_task * STATES * P + w_at
    p_next += i_task * STATES * P + w_at
    p_lr += w_at
    p_u += i_task * P + w_at
    GAP: tl.constexpr = (
        4 - (OUT * IN) % 4
    ) % 4  # padding to 16 bytes, where there are rows beyond OUT in the last tile
    m_load = (o_o < OUT)[:, None] & (o_i < IN)[None, :]
    m_store = m_load | ((o_o == OUT)[:, None] & (o_i < GAP)[None, :])
    deliver(g, p_phi, p_to, p_with, p_state, p_next, p_lr, p_steps, p_u, o_o[:, None] * IN + o_i[None, :], m_load,
            m_store, first, last, P, SINK, RULE, HYPER, LR_EACH, DIRECTIONS)  # fmt: skip
    if BIAS != 0:  # noqa: SIM102  the outer condition is the compiler's
        if tl.program_id(0) % ((IN + BI - 1) // BI) == 0:  # one tile of each row of tiles
            deliver(g_bias, p_phi + BIAS, p_to + BIAS, p_with + BIAS, p_state + BIAS, p_next + BIAS, p_lr + BIAS,
                    p_steps, p_u + BIAS, o_o, o_o < OUT, o_o < (OUT + 3) // 4 * 4, first, last, P, SINK, RULE, HYPER,
                    LR_EACH, DIRECTIONS)  # fmt: skip
