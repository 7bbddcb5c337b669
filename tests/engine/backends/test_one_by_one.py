"""The last rung, task by task under plain autograd: whatever a plain loop can differentiate, to rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from meta_steps import Batch, regression
from plain_loop import LEARNERS, agrees, plain_loop
from torch import nn

ALGORITHMS = tuple(LEARNERS)


class Two(nn.Module):
    """Two linear layers; what stands between them is what a test is about."""

    def __init__(self, between=torch.tanh, features=2):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(features, 4), nn.Linear(4, 1), between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


def sequences(features=3):
    def samples(n):
        return torch.randn(2, n, 5, features), torch.randn(2, n, 1)

    return Batch(*samples(4), *samples(3))


def tokens():
    def samples(n):
        return torch.randint(7, (2, n, 3)), torch.randn(2, n, 1)

    return Batch(*samples(4), *samples(3))


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.layers = getattr(nn, kind)(3, 4, batch_first=True, **options)
        self.out = nn.Linear(8 if options.get("bidirectional") else 4, 1)

    def forward(self, x):
        return self.out(self.layers(x)[0][:, -1])


class Packed(Recurrent):
    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.layers(packed)[1][-1])


class Tokens(nn.Module):
    def __init__(self, frozen=False, **options):
        super().__init__()
        self.table, self.out = nn.Embedding(7, 4, **options), nn.Linear(4, 1)
        self.table.weight.requires_grad_(not frozen)

    def forward(self, ids):
        return self.out(self.table(ids).mean(1))


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, d):
        (x,) = ctx.saved_tensors
        return d * (1 - torch.tanh(x) ** 2)


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(x, scale):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx, d):
        return -ctx.scale * d, None


def hooked_tensor(h):
    h = torch.tanh(h)
    if h.requires_grad:
        h.register_hook(lambda d: d * 0.5)
    return h


def by_values(h):
    rows = (h[:, 0] > 0).nonzero().flatten()
    h = torch.tanh(h.index_add(0, rows, h[rows]))
    return h * 2 if h.sum().item() > 0 else h * len(torch.unique(rows))


class Derivative(Two):
    """u + ∂u/∂x, the derivative by torch.autograd.grad in forward."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        u = super().forward(x)
        return u + torch.autograd.grad(u.sum(), x, create_graph=True)[0].sum(1, keepdim=True)


class FunctionalDerivative(Two):
    def forward(self, x):
        return torch.func.vmap(torch.func.grad(lambda z: super(FunctionalDerivative, self).forward(z).sum()))(x)[:, :1]


class Algebra(nn.Module):
    """Features times a function of their own 3 × 3 Gram matrix."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(3, 3), nn.Linear(3, 1), function

    def forward(self, x):
        h = self.a(x)
        return self.b(h @ self.function(h.T @ h + torch.eye(3)))


def with_hook(add):
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    add(model)
    return model


def spectral():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 4))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 1))


def lengths_of(batch, low=1, high=6):
    support = torch.randint(low, high, batch.support_x.shape[:2])
    query = torch.randint(low, high, batch.query_x.shape[:2])
    return batch._replace(support_x=(batch.support_x, support), query_x=(batch.query_x, query))


KINDS = {
    "rnn": (lambda: Recurrent("RNN", num_layers=2), sequences),
    "gru": (lambda: Recurrent("GRU"), sequences),
    "lstm": (lambda: Recurrent("LSTM", bidirectional=True), sequences),
    "packed sequences": (lambda: Packed("GRU"), lambda: lengths_of(sequences())),
    "sparse embedding": (lambda: Tokens(sparse=True), tokens),
    "padding index": (lambda: Tokens(padding_idx=0), tokens),
    "max norm": (lambda: Tokens(max_norm=1.0), tokens),
    "frozen, max norm": (lambda: Tokens(max_norm=1.0, frozen=True), tokens),
    "spectral norm": (spectral, regression),
    "straight-through": (lambda: Two(StraightThrough.apply), regression),
    "gradient reversal": (lambda: Two(lambda h: Reversal.apply(torch.tanh(h), 0.7)), regression),
    "tensor hook": (lambda: Two(hooked_tensor), regression),
    "branches and sizes by values": (lambda: Two(by_values), regression),
    "no grad": (lambda: Two(lambda h: torch.tanh(h - h.detach().mean(0))), regression),
    "derivative": (Derivative, regression),
    "torch.func": (FunctionalDerivative, regression),
    "forward hook": (lambda: with_hook(lambda m: m[1].register_forward_hook(lambda m, x, y: y * 2)), regression),
    "pre-hook": (lambda: with_hook(lambda m: m[1].register_forward_pre_hook(lambda m, x: (x[0] * 2,))), regression),
    "full backward hook": (
        lambda: with_hook(lambda m: m[1].register_full_backward_hook(lambda m, dx, dy: (dx[0] * 2,))), regression
    ),
    "full backward pre-hook": (
        lambda: with_hook(lambda m: m[1].register_full_backward_pre_hook(lambda m, dy: (dy[0] * 2,))), regression
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KINDS)
def test_modules_that_no_trace_holds(kind, algorithm):
    make, data = KINDS[kind]
    model = make()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    agrees(model, F.mse_loss, data(), algorithm=algorithm)
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name]), f"{name} was written"


ALGEBRA = {
    "solve": lambda a: torch.linalg.solve(a, torch.eye(3)),
    "inv": torch.linalg.inv,
    "det": lambda a: torch.linalg.det(a) * torch.eye(3) * 0.01,
    "slogdet": lambda a: torch.linalg.slogdet(a)[1] * torch.eye(3),
    "logdet": lambda a: torch.logdet(a) * torch.eye(3),
    "cholesky": torch.linalg.cholesky,
    "eigvalsh": lambda a: torch.diag(torch.linalg.eigvalsh(a)),
    "svdvals": lambda a: torch.diag(torch.linalg.svdvals(a)),
    "lstsq": lambda a: torch.linalg.lstsq(a, torch.eye(3), driver="gels").solution,
}


@pytest.mark.parametrize("function", ALGEBRA.values(), ids=ALGEBRA)
def test_linear_algebra(function):
    agrees(Algebra(function), F.mse_loss, regression(features=3), rtol=1e-9)


@pytest.mark.parametrize("deprecated", [False, True])
def test_weight_norm_is_written_out(deprecated):
    """PyTorch's own second derivative of torch._weight_norm is 4 % off: the truth is g v / ‖v‖."""

    class WrittenOut(nn.Module):
        def __init__(self):
            super().__init__()
            self.g, self.v, self.bias = (nn.Parameter(torch.randn(4, *rest)) for rest in ((1,), (2,), ()))
            self.out = nn.Linear(4, 1)

        def forward(self, x):
            return self.out(torch.tanh(F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True), self.bias)))

    model, layer = WrittenOut(), nn.Linear(2, 4)
    if deprecated:
        with pytest.warns(FutureWarning):
            layer = nn.utils.weight_norm(layer)
        names = {"weight_g": "g", "weight_v": "v", "bias": "bias"}
    else:
        layer = nn.utils.parametrizations.weight_norm(layer)
        names = {"parametrizations.weight.original0": "g", "parametrizations.weight.original1": "v", "bias": "bias"}
    layer.load_state_dict({name: getattr(model, other).detach() for name, other in names.items()})
    batch = regression()
    truth = plain_loop(model, F.mse_loss, batch)
    grads = {f"0.{name}": truth.grads[other] for name, other in names.items()}
    grads |= {f"2.{name}": truth.grads[f"out.{name}"] for name in ("weight", "bias")}
    agrees(nn.Sequential(layer, nn.Tanh(), model.out), F.mse_loss, batch, truth=truth._replace(grads=grads))
