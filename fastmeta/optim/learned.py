"""The learned optimiser of Andrychowicz et al. as an inner rule: an LSTM for every coordinate of φ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from .base import Meta, Rows, State, check_number
from .lstm import check_hidden
from .recurrent import Network, Recurrent, lstm


class UpdateNetwork(Network):
    """The learned network of `LearnedUpdate`: LSTM cells one behind the other, and a linear layer to one number.

    PyTorch's initialisation, but for a bias of one in the forget gates, as the authors' library has it.
    """

    def __init__(self, hidden: Sequence[int], *, inputs: int) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.cells = nn.ModuleList(nn.LSTMCell(a, b) for a, b in zip(widths, hidden, strict=False))
        for cell, width in zip(self.cells, hidden, strict=True):
            with torch.no_grad():
                cast(nn.LSTMCell, cell).bias_ih[width : 2 * width] += 1.0
        self.linear = nn.Linear(widths[-1], 1)
        self.register_buffer("_real", torch.zeros(0), persistent=False)  # one where a row holds a value, else padding

    def build(self, rows: Rows, steps: int) -> None:
        """Its parameters on the device and in the dtype of a row."""
        super().build(rows, steps)
        real = torch.zeros(rows.size, dtype=rows.dtype)
        for shape, at in zip(rows.shapes, rows.offsets, strict=True):
            real[at : at + shape.numel()] = 1.0
        self._real = real.to(rows.device)

    def tensors(self) -> Meta:
        """In the order in which `LearnedUpdate` takes them."""
        cells = [(c.weight_ih, c.weight_hh, c.bias_ih, c.bias_hh) for c in cast("list[nn.LSTMCell]", [*self.cells])]
        return (*(x for cell in cells for x in cell), self.linear.weight, self.linear.bias, self._real)


@dataclass(frozen=True, kw_only=True)
class LearnedUpdate(Recurrent):
    """φ_{k+1} = φ_k + scale · linear(LSTM(pre(g_k))), coordinate by coordinate (Andrychowicz et al. 2016).

    pre(g) = (max(ln(|g| + eps) / p, −1), clip(e^p g, −1, 1)); without preprocessing it is g. The state is (h, c) of
    every layer, zero at first.

    Args:
        hidden: widths of the LSTM's layers.
        p: of the preprocessing; None: none.
        scale: of the update.
        eps: in the logarithm; None: the machine epsilon of the fast weights' dtype.

    Raises:
        ValueError: an option out of range.
    """

    hidden: tuple[int, ...] = (20, 20)
    p: float | None = 5.0
    scale: float = 0.01
    eps: float | None = None
    learned: UpdateNetwork | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not self.hidden:
            raise ValueError("hidden must hold the width of at least one layer, got none")
        for i, width in enumerate(self.hidden):
            check_hidden(f"hidden[{i}]", width)
        check_number("scale", self.scale)
        for name in ("p", "eps"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value)
        if self.p == 0:
            raise ValueError("p must be positive, or None for gradients as they are, got 0")

    @classmethod
    def new(
        cls, *, hidden: Sequence[int] = (20, 20), p: float | None = 5.0, scale: float = 0.01, eps: float | None = None
    ) -> LearnedUpdate:
        """With a network of its own."""
        rule = cls(hidden=tuple(hidden), p=p, scale=scale, eps=eps)
        return replace(rule, learned=UpdateNetwork(rule.hidden, inputs=1 if p is None else 2))

    def init(self, phi: Tensor) -> State:
        """(h, c) of every layer, zero."""
        return tuple(phi.new_zeros(*phi.shape, width) for width in self.hidden for _ in range(2))

    def meta(self, rows: Rows, steps: int) -> Meta:
        """The network's tensors, and where a row holds padding."""
        assert self.learned is not None, "a structure has no network"
        return self.learned.tensors()

    def structure(self) -> LearnedUpdate:
        """Without the network."""
        return replace(self, learned=None)

    def step(self, phi: Tensor, g: Tensor, state: State, k: int, meta: Meta) -> tuple[Tensor, State]:
        """φ_k, its gradient and the state → φ_{k+1} and the new state."""
        x = self._preprocessed(g)
        after: list[Tensor] = []
        for layer in range(len(self.hidden)):
            h, c = state[2 * layer : 2 * layer + 2]
            x, c = lstm(x, h, c, meta[4 * layer : 4 * layer + 4])
            after += [x, c]
        weight, bias, real = meta[-3:]
        update = torch.matmul(x, weight.mT).squeeze(-1) + bias
        return phi + update * real * self.scale, tuple(after)

    def _preprocessed(self, g: Tensor) -> Tensor:
        """[T, P, 2] or, without preprocessing, [T, P, 1]."""
        if self.p is None:
            return g.unsqueeze(-1)
        eps = torch.finfo(g.dtype).eps if self.eps is None else self.eps
        first = ((g.abs() + eps).log() / self.p).clamp(min=-1.0)
        return torch.stack([first, (g * math.exp(self.p)).clamp(-1.0, 1.0)], -1)
