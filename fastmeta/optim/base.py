"""Inner optimisers: one update of the fast weights of all tasks, and its vector-Jacobian product.

Everything acts on flat buffers [T, P]. `step` follows `torch.optim` of the same name; `vjp` takes the adjoint of what
`step` gives back to the adjoint of what it took, so that an inner loop is differentiated exactly through the
optimiser's state as well (derivations: kernels/README.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

State = tuple[Tensor, ...]


class Pulled(NamedTuple):
    """An adjoint pulled back through one step: λ_k = direct + factor · H v, H the Hessian at φ_k, and σ_k = state.

    The factor stands apart because it then costs nothing: it goes into the sum.
    """

    direct: Tensor
    v: Tensor
    factor: float
    state: State


def _check_rate(name: str, value: float, *, below_one: bool = False) -> None:
    legal = isinstance(value, int | float) and math.isfinite(value) and value >= 0 and (not below_one or value < 1)
    if not legal:
        bound = "in [0, 1)" if below_one else "finite and not negative"
        raise ValueError(f"{name} must be a number {bound}, got {value!r}")
