"""Softmax cross-entropy of one task inside kernels, mean over its samples; formulas: `fastmeta/ops/cross_entropy.py`.

Blocks are [BN, BC] logits; `rows` [BN] says where each sample's label lies, `m_rows` which rows are samples.
"""

import triton
import triton.language as tl


@triton.jit
def labels_that_count(p_y, N: tl.constexpr, IGNORE: tl.constexpr):
    """How many of a task's N labels are not ignored."""
    offsets = tl.arange(0, 1024)
    count = tl.zeros([1024], tl.float32)
    for at in range(0, N, 1024):
        label = tl.load(p_y + at + offsets, mask=at + offsets < N, other=IGNORE)
        count += tl.where(label != IGNORE, 1.0, 0.0)
    return tl.sum(count, 0)


@triton.jit
def labels_that_count_of(p_y, rows, m_rows, IGNORE: tl.constexpr):
    """The same of the samples in `rows`."""
    label = tl.load(p_y + rows, mask=m_rows, other=IGNORE)
    return tl.sum(tl.where(m_rows & (label != IGNORE), 1.0, 0.0), 0)


@triton.jit
def _softmax(y, p_y, rows, m_rows, count, C: tl.constexpr, BC: tl.constexpr, IGNORE: tl.constexpr):
    """log p, p, one-hot targets [BN, BC] and the samples' weights [BN]."""
    o_c = tl.arange(0, BC)
    m_c = o_c[None, :] < C
    shifted = y - tl.max(tl.where(m_c, y, float("-inf")), 1)[:, None]
    e = tl.where(m_c, tl.exp(shifted), 0.0)
    total = tl.sum(e, 1)
    log_p = shifted - tl.log(total)[:, None]
    label = tl.load(p_y + rows, mask=m_rows, other=IGNORE)
    valid = tl.where(m_rows & (label != IGNORE), 1.0, 0.0)
    onehot = tl.where(o_c[None, :] == label[:, None], 1.0, 0.0)
    return log_p, e / total[:, None], onehot, valid / count


@triton.jit
def cross_entropy(
    y, p_y, rows, m_rows, count, C: tl.constexpr, BC: tl.constexpr, SMOOTHING: tl.constexpr, IGNORE: tl.constexpr
):
    """These samples' part of the loss and its gradient [BN, BC], where `count` of the task's labels count.

    A sample without weight counts not even where its log p is −∞.
    """
    log_p, p, onehot, weight = _softmax(y, p_y, rows, m_rows, count, C, BC, IGNORE)
    m_c = tl.arange(0, BC)[None, :] < C
    target = tl.where(m_c, (1.0 - SMOOTHING) * onehot + SMOOTHING / C, 0.0)
    nll = tl.sum(tl.where(target == 0.0, 0.0, -log_p * target), 1)
    loss = tl.sum(tl.where(weight == 0.0, 0.0, nll * weight), 0)
    return loss, tl.where(m_c & m_rows[:, None], (p - target) * weight[:, None], 0.0)


@triton.jit
def cross_entropy_dot(y, y_dot, p_y, rows, m_rows, count, C: tl.constexpr, BC: tl.constexpr, IGNORE: tl.constexpr):
    """Tangent of the gradient [BN, BC] along y_dot."""
    log_p, p, onehot, weight = _softmax(y, p_y, rows, m_rows, count, C, BC, IGNORE)
    bend = p * (y_dot - tl.sum(p * y_dot, 1)[:, None])
    return tl.where((tl.arange(0, BC)[None, :] < C) & m_rows[:, None], bend * weight[:, None], 0.0)
