"""Sums whose terms several programs make: the last of them to come adds all, in their order, so bits do not change."""

import triton
import triton.language as tl


@triton.jit
def arrived_last(p_arrived, OF: tl.constexpr):
    """Whether this program is the last of OF that come here; what the others stored before is then there to read.

    The count goes up in whole numbers, and is zero again behind the last. It releases what this program's threads
    stored (a barrier gathers them in front of it), and acquires what others released.
    """
    tl.debug_barrier()
    before = tl.atomic_add(p_arrived, 1)
    last = before == OF - 1
    if last:
        tl.store(p_arrived, 0)
    tl.debug_barrier()
    return last
