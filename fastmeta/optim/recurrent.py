"""What inner rules that are recurrent networks share: every coordinate of φ has states of its own, and all of them the
same weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Meta, Named, Pulled, Rows, Rule, State


class Network(nn.Module):
    """The learned network of a `Recurrent` rule: moved to where the fast weights are when a learner is made."""

    def build(self, rows: Rows, steps: int) -> None:
        """Its parameters on the device and in the dtype of a row; their shapes do not depend on the rows."""
        if rows.dtype.is_complex:
            raise ValueError(f"{type(self).__name__} steps real numbers, and the module has complex parameters")
        self.to(rows.device, rows.dtype)


class Recurrent(Rule):
    """A rule whose `step` takes the tensors of `meta` as they are, [*shape], or one for each task, [T, *shape].

    That a product of matrices does by itself, so that ∂/∂η of every task comes of one sweep over all of them.
    """

    reads_gradient: ClassVar[bool] = True

    def vjp(
        self, phi: Tensor, g: Tensor | None, state: State, k: int, meta: Meta, lam: Tensor, sigma: State,
        *, wanted: bool = False, loss: Tensor | None = None,
    ) -> Pulled:  # fmt: skip
        """By `torch.func.vjp` of `step`, with η repeated for every task where its gradient is wanted."""
        assert g is not None, "a recurrent rule reads the gradient"
        tasks = phi.shape[0]
        given: Named = {} if loss is None else {"loss": loss}
        each = tuple(m.expand(tasks, *m.shape) for m in meta) if wanted else ()

        def step(phi: Tensor, g: Tensor, state: State, each: Meta, given: Named) -> tuple[Tensor, State]:
            return self.step(phi, g, state, k, each or meta, **given)

        back = torch.func.vjp(step, phi, g, state, each, given)[1]
        a_phi, a_g, a_state, a_meta, a_given = back((lam, sigma))
        return Pulled(a_phi, a_g, 1.0, tuple(a_state), tuple(a_meta), a_given.get("loss"))


def lstm(x: Tensor, h: Tensor, c: Tensor, weights: Meta) -> tuple[Tensor, Tensor]:
    """A cell of `torch.nn.LSTMCell`: inputs [T, P, inputs], states [T, P, hidden] → the new states.

    `weights` are weight_ih [4 hidden, inputs], weight_hh [4 hidden, hidden], bias_ih and bias_hh [4 hidden], or such
    for each task.
    """
    of_x, of_h, bias_x, bias_h = weights
    gates = torch.matmul(x, of_x.mT) + torch.matmul(h, of_h.mT) + (bias_x + bias_h).unsqueeze(-2)
    i, f, new, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(new)
    return torch.sigmoid(o) * torch.tanh(c), c
