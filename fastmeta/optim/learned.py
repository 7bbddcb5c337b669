"""The learned optimiser of Andrychowicz et al. as an inner rule: an LSTM for every coordinate of φ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from .base import Meta, Pulled, Rows, Rule, State, check_number
from .lstm import check_hidden
from .recurrent import Gates, Network, lstm, lstm_vjp


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

    def tensors(self) -> Meta:
        """In the order in which `LearnedUpdate` takes them."""
        cells = [(c.weight_ih, c.weight_hh, c.bias_ih, c.bias_hh) for c in cast("list[nn.LSTMCell]", [*self.cells])]
        return (*(x for cell in cells for x in cell), self.linear.weight, self.linear.bias)


@dataclass(frozen=True, kw_only=True)
class LearnedUpdate(Rule):
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
        if self.eps == 0:
            raise ValueError("eps must be positive, got 0: it keeps the logarithm of a gradient of zero finite")
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
        return (
            *self.learned.tensors(),
            _real(tuple(rows.shapes), tuple(rows.offsets), rows.size, rows.dtype, rows.device),
        )

    def structure(self) -> LearnedUpdate:
        """Without the network."""
        return replace(self, learned=None)

    def step(self, phi: Tensor, g: Tensor, state: State, k: int, meta: Meta) -> tuple[Tensor, State]:
        """φ_k, its gradient and the state → φ_{k+1} and the new state."""
        _, after, _ = self._forward(g, state, meta)
        weight, bias, real = meta[-3:]
        update = torch.matmul(after[-2], weight[0]) + bias
        return phi + update * real * self.scale, after

    def _forward(self, g: Tensor, state: State, meta: Meta) -> tuple[list[Tensor], State, list[Gates]]:
        """Every layer's inputs, its new states and its gates."""
        x = self._preprocessed(g)
        inputs: list[Tensor] = []
        after: list[Tensor] = []
        gates: list[Gates] = []
        for layer in range(len(self.hidden)):
            inputs.append(x)
            h, c = state[2 * layer : 2 * layer + 2]
            x, c, kept = lstm(x, h, c, meta[4 * layer : 4 * layer + 4])
            after += [x, c]
            gates.append(kept)
        return inputs, tuple(after), gates

    def vjp(
        self, phi: Tensor, g: Tensor | None, state: State, k: int, meta: Meta, lam: Tensor, sigma: State,
        *, wanted: bool = False, loss: Tensor | None = None,
    ) -> Pulled:  # fmt: skip
        """Runs the step again, and backwards."""
        assert g is not None, "the update reads the gradient"
        inputs, after, gates = self._forward(g, state, meta)
        weight, _, real = meta[-3:]
        d = lam * real * self.scale
        d_x = d.unsqueeze(-1) * weight[0]
        found: list[Tensor] = []
        of_state: list[Tensor] = []
        for layer in range(len(self.hidden) - 1, -1, -1):
            d_h, d_c = sigma[2 * layer : 2 * layer + 2]
            h, c = state[2 * layer : 2 * layer + 2]
            d_x, d_h, d_c, of_cell = lstm_vjp(
                inputs[layer], h, c, meta[4 * layer : 4 * layer + 4], gates[layer], d_h + d_x, d_c, wanted=wanted
            )
            of_state = [d_h, d_c, *of_state]
            found = [*of_cell, *found]
        if wanted:
            # the last is of the mask of the padding, which nothing learns
            of_weight = torch.matmul(d.unsqueeze(1), after[-2])
            found += [of_weight, d.sum(1, keepdim=True), torch.zeros_like(d)]
        return Pulled(lam, self._preprocessed_vjp(g, d_x), 1.0, tuple(of_state), tuple(found))

    def _preprocessed(self, g: Tensor) -> Tensor:
        """[T, P, 2] or, without preprocessing, [T, P, 1]."""
        if self.p is None:
            return g.unsqueeze(-1)
        eps = torch.finfo(g.dtype).eps if self.eps is None else self.eps
        first = ((g.abs() + eps).log() / self.p).clamp(min=-1.0)
        return torch.stack([first, (g * math.exp(self.p)).clamp(-1.0, 1.0)], -1)

    def _preprocessed_vjp(self, g: Tensor, d: Tensor) -> Tensor:
        """The cotangent of g, `d` being that of `_preprocessed(g)`; at the bends as autograd has it."""
        if self.p is None:
            return d.squeeze(-1)
        size = g.abs() + (torch.finfo(g.dtype).eps if self.eps is None else self.eps)
        first = torch.where(size.log() / self.p >= -1.0, d[..., 0] * g.sign() / (size * self.p), 0.0)
        factor = math.exp(self.p)
        return first + torch.where((g * factor).abs() <= 1.0, d[..., 1] * factor, 0.0)


@lru_cache(maxsize=64)
def _real(
    shapes: tuple[torch.Size, ...], offsets: tuple[int, ...], size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[P]: one where a row holds a value, zero where it is padding."""
    with torch.inference_mode(False):
        real = torch.zeros(size, dtype=dtype)
        for shape, at in zip(shapes, offsets, strict=True):
            real[at : at + shape.numel()] = 1.0
        return real.to(device)
