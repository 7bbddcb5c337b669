"""The LSTM meta-learner of Ravi & Larochelle as an inner rule: the fast weights are the cell state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .base import Meta, Pulled, Rows, Rule, State, check_number
from .recurrent import Network, lstm, lstm_vjp

FedBack = Literal["preactivation", "activation"]


class GateNetwork(Network):
    """The learned network of `LSTMRule`: an LSTM cell over (loss, gradient), and the weights of the two gates.

    `forget_weight` and `input_weight` [hidden + 2] are of (h, φ, the gate before), with biases [1]. As published, all
    weights start in U(−0.01, 0.01), the forget gate's bias in U(4, 5) and the input gate's in U(−5, −4), so that at
    first the step is nearly one of gradient descent with a small rate.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, hidden)
        for p in self.cell.parameters():
            nn.init.uniform_(p, -0.01, 0.01)
        self.forget_weight = nn.Parameter(torch.empty(hidden + 2).uniform_(-0.01, 0.01))
        self.forget_bias = nn.Parameter(torch.empty(1).uniform_(4.0, 5.0))
        self.input_weight = nn.Parameter(torch.empty(hidden + 2).uniform_(-0.01, 0.01))
        self.input_bias = nn.Parameter(torch.empty(1).uniform_(-5.0, -4.0))

    def tensors(self) -> Meta:
        """In the order in which `LSTMRule` takes them."""
        cell = self.cell
        return (
            cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh,
            self.forget_weight, self.forget_bias, self.input_weight, self.input_bias,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LSTMRule(Rule):
    """φ_{k+1} = f ⊙ φ_k − i ⊙ g_k, with the gates of every coordinate from an LSTM (Ravi & Larochelle 2017).

    f = σ([h, φ, f'] · w_f + b_f) and i likewise, h the LSTM's output for the preprocessed (loss, g), and f', i' the
    gates of the step before: their values before σ as the authors' code has it ("preactivation"), or behind it as the
    paper writes it ("activation"); zero at first. The state is (h, c, f', i').

    Args:
        hidden: width of the LSTM.
        gates: which form of f' and i' is fed back.
        p: of the preprocessing.

    Raises:
        ValueError: an option out of range.
    """

    reads_loss: ClassVar[bool] = True

    hidden: int = 20
    gates: FedBack = "preactivation"
    p: float = 10.0
    learned: GateNetwork | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_hidden("hidden", self.hidden)
        if self.gates not in ("preactivation", "activation"):
            raise ValueError(f'gates must be "preactivation" or "activation", got {self.gates!r}')
        check_number("p", self.p)
        if self.p == 0:
            raise ValueError("p must be positive, got 0: the preprocessing divides by it")

    @classmethod
    def new(cls, *, hidden: int = 20, gates: FedBack = "preactivation", p: float = 10.0) -> LSTMRule:
        """With a network of its own."""
        rule = cls(hidden=hidden, gates=gates, p=p)
        return replace(rule, learned=GateNetwork(hidden))

    def init(self, phi: Tensor) -> State:
        """(h, c, f', i'), zero."""
        h = phi.new_zeros(*phi.shape, self.hidden)
        return h, torch.zeros_like(h), torch.zeros_like(phi), torch.zeros_like(phi)

    def meta(self, rows: Rows, steps: int) -> Meta:
        """The network's tensors."""
        assert self.learned is not None, "a structure has no network"
        return self.learned.tensors()

    def structure(self) -> LSTMRule:
        """Without the network."""
        return replace(self, learned=None)

    def step(
        self, phi: Tensor, g: Tensor, state: State, k: int, meta: Meta, *, loss: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """φ_k, its gradient, the state and the support loss → φ_{k+1} and the new state."""
        assert loss is not None, "a rule that reads the loss is handed it"
        h, c, f, i = state
        h, c, _ = lstm(self._inputs(g, loss), h, c, meta[:4])
        f, i = _gate(h, phi, f, *meta[4:6]), _gate(h, phi, i, *meta[6:])
        opened = torch.sigmoid(f), torch.sigmoid(i)
        fed_back = (f, i) if self.gates == "preactivation" else opened
        return opened[0] * phi - opened[1] * g, (h, c, *fed_back)

    def _inputs(self, g: Tensor, loss: Tensor) -> Tensor:
        """[T, P, 4]."""
        of_loss = log_and_sign(loss, self.p).unsqueeze(1).expand(*g.shape, 2)
        return torch.cat([of_loss, log_and_sign(g, self.p)], -1)

    def vjp(
        self, phi: Tensor, g: Tensor | None, state: State, k: int, meta: Meta, lam: Tensor, sigma: State,
        *, wanted: bool = False, loss: Tensor | None = None,
    ) -> Pulled:  # fmt: skip
        """Runs the step again, and backwards."""
        assert g is not None, "the gates read the gradient"
        assert loss is not None, "and the loss"
        before_h, before_c, f, i = state
        x = self._inputs(g, loss)
        h, _, kept = lstm(x, before_h, before_c, meta[:4])
        opened = [torch.sigmoid(_gate(h, phi, s, w, b)) for s, w, b in ((f, *meta[4:6]), (i, *meta[6:]))]
        d_h, d_c, *fed_back = sigma
        direct, v = opened[0] * lam, -opened[1] * lam
        of_state: list[Tensor] = []
        of_gates: list[Tensor] = []
        for at, d_opened, gate in ((0, lam * phi, f), (1, -lam * g, i)):
            weight, y = meta[4 + 2 * at], opened[at]
            slope = y * (1 - y)
            if self.gates == "preactivation":
                d = torch.addcmul(fed_back[at], d_opened, slope)
            else:
                d = (d_opened + fed_back[at]) * slope
            d_h = torch.addcmul(d_h, d.unsqueeze(-1), weight[:-2])
            direct = direct + d * weight[-2]
            of_state.append(d * weight[-1])
            if wanted:
                of_h = torch.matmul(d.unsqueeze(1), h).squeeze(1)
                rest = torch.stack([(d * phi).sum(1), (d * gate).sum(1)], 1)
                of_gates += [torch.cat([of_h, rest], 1), d.sum(1, keepdim=True)]
        d_x, d_h, d_c, of_cell = lstm_vjp(x, before_h, before_c, meta[:4], kept, d_h, d_c, wanted=wanted)
        v = v + log_and_sign_vjp(g, self.p, d_x[..., 2:])
        of_loss = log_and_sign_vjp(loss, self.p, d_x[..., :2].sum(1))
        return Pulled(direct, v, 1.0, (d_h, d_c, *of_state), (*of_cell, *of_gates), of_loss)


def _gate(h: Tensor, phi: Tensor, before: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[T, P], before the activation; `weight` [hidden + 2]."""
    return torch.matmul(h, weight[:-2]) + phi * weight[-2] + before * weight[-1] + bias


def log_and_sign_vjp(x: Tensor, p: float, d: Tensor) -> Tensor:
    """The cotangent of x, `d` [..., 2] being that of `log_and_sign(x, p)`."""
    large = x.abs() >= math.exp(-p)
    return torch.where(large, d[..., 0] / (p * torch.where(large, x, 1.0)), d[..., 1] * math.exp(p))


def log_and_sign(x: Tensor, p: float) -> Tensor:
    """[..., 2]: (ln|x| / p, sign x) where |x| ≥ e^−p, else (−1, e^p x)."""
    size = x.abs()
    large = size >= math.exp(-p)
    # the logarithm must not see a zero: its slope there would turn a cotangent of zero into NaN, where autograd runs
    first = torch.where(large, torch.where(large, size, 1.0).log() / p, -1.0)
    return torch.stack([first, torch.where(large, x.sign(), x * math.exp(p))], -1)


def check_hidden(name: str, value: int) -> None:
    """Raises ValueError unless `value` is a width."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
