"""Mean squared error of one task inside kernels, mean over all its elements: formulas as in `fastmeta/ops/mse.py`.

Blocks are [BN, BC] outputs; `rows` [BN] says where each sample's target lies, `m_rows` which rows are samples.
"""

import triton
import triton.language as tl


@triton.jit
def mse(y, p_y, rows, m_rows, N: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):
    """Loss and its gradient [BN, BC]."""
    o_c = tl.arange(0, BC)
    mask = m_rows[:, None] & (o_c[None, :] < C)
    target = tl.load(p_y + rows[:, None] * C + o_c[None, :], mask=mask, other=0.0)
    r = tl.where(mask, y - target, 0.0)
    return tl.sum(tl.sum(r * r, 1), 0) / (N * C), r * (2.0 / (N * C))


@triton.jit
def mse_dot(y_dot, m_rows, N: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):
    """Tangent of the gradient [BN, BC] along y_dot."""
    return tl.where(m_rows[:, None] & (tl.arange(0, BC)[None, :] < C), y_dot * (2.0 / (N * C)), 0.0)
