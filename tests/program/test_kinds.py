"""One test a kind of program: exact, first-order and Reptile gradients as a plain loop has them, and on which rung."""

from __future__ import annotations

import functools
import pickle
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helper_functions import Reverse, Scaled, Straight
from loop_truth import Loop, PlainLoop, Rule
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fastmeta

OWN, OPAQUE, LOOP = "own sweeps", "opaque through torch.func: ", "task by task under plain autograd"
LEARNERS = {"exact": fastmeta.MAML, "first": fastmeta.FOMAML, "reptile": fastmeta.Reptile}


class Kind(NamedTuple):
    """A network between two linear layers: what it is made of, what it does to [n, 4], and the rung it ends on."""

    forward: Callable[[Any, torch.Tensor], torch.Tensor]
    rung: str = OWN
    parts: Callable[[], dict[str, Any]] = dict
    loss: Callable[[nn.Module], Callable[[Any, Any], torch.Tensor]] = lambda net: F.mse_loss
    orders: tuple[str, ...] = ("exact", "first", "reptile")


class Net(nn.Module):
    """The network of a kind."""

    def __init__(self, name):
        super().__init__()
        self.name, self.first, self.last = name, nn.Linear(4, 4), nn.Linear(4, 3)
        for part, value in KINDS[name].parts().items():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(part, value)
            else:
                setattr(self, part, value)

    def forward(self, x):
        return self.last(KINDS[self.name].forward(self, self.first(x).tanh()))


def make(name):
    torch.manual_seed(0)
    return Net(name).double()


def under_no_grad(net, h):
    with torch.no_grad():
        scale = net.mid(h).cos()
    return h * scale


def frozen_by_mode(net, h):
    with torch.set_grad_enabled(False):
        h = net.mid(h)
    return h.sin() * net.gain


def centred_in_inference(_, h):
    with torch.inference_mode():
        centre = h.mean()
    return h - centre


def optional(h, other=None, *more, scale=None):
    h = h if other is None else h * other
    for each in more:
        h = h + each
    return h if scale is None or not isinstance(h, torch.Tensor) else h * scale


def loop_on_shapes(_, h):
    for i in range(h.shape[1]):
        h = h + 0.1 * h[:, i : i + 1]
    return h


def branches(_, h):
    return h.sin() if h.mean() > 0 else h.cos()


def physics(net, h):
    z = h.sum(1, keepdim=True)
    (slope,) = torch.autograd.grad(net.mid(z).sin().sum(), z, create_graph=True)
    return h + slope


def in_place(_, h):
    h = h * 0.5
    h.sin_()
    h **= 2
    F.leaky_relu_(h, 0.1)
    h = h + 1
    h[:, 1:3] *= 2
    h[:, 0] = 0.3
    half = h.view(-1, 2, 2)[:, 1]
    half.add_(1)
    return h.exp_()


def writes_behind_autograd(_, h):
    h = h * 0.5
    with torch.no_grad():
        h.mul_(0.5)
    return h.sin()


def writes_through_data(_, h):
    h = h * 0.5
    h.data[:, 0] = 2.0
    return h.sin()


def running_mean(net, h):
    net.mean.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
    return h - net.mean


def keeps_divergence(net, h):
    net.kl = h.square().mean()
    return h


def counts(net, h):
    net.calls += 1  # which nothing else depends on
    return h.sin()


def generalised_batch_norm(net, h):
    return F.batch_norm(h, net.mean, net.var, net.mid.weight[0], training=net.training, eps=0.1)


def squares(h):
    return h.view(-1, 2, 2) * 0.3 + 2 * torch.eye(2, dtype=h.dtype)


def symmetric(h):
    a = squares(h)
    return a @ a.mT


def spread_out(h):
    return squares(h) + torch.diag(torch.tensor([0.0, 3.0], dtype=h.dtype))


def eigenvalues_and_vectors(a):
    e, v = torch.linalg.eigh(a)
    return (v.square() * e[:, None]).flatten(1)


def packed(net, h):
    lengths = torch.tensor([2, 2, 1, 1])[: len(h)]
    rows = nn.utils.rnn.pack_padded_sequence(h.view(-1, 2, 2), lengths, batch_first=True)
    return net.mid(rows)[1][0]


def self_paced(_):
    def loss(out, y):
        each = (out - y).square().mean(1)
        with torch.no_grad():
            weight = (-each).exp()
        return (weight * each).sum()

    return loss


def linear():
    return {"mid": nn.Linear(4, 4)}


def layer(make_layer, forward=lambda net, h: net.mid(h), rung=OWN):
    return Kind(forward, rung, lambda: {"mid": make_layer()})


def sequence(net, h):
    return net.mid(h.view(-1, 2, 2))[0].flatten(1)


def heads(net, h):
    s = h.view(-1, 2, 2)
    return net.mid(s, s, s, need_weights=False)[0].flatten(1)


def encoder():
    return nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True, activation="gelu")


def penalty(net):
    return lambda out, y: F.mse_loss(out, y) + 0.1 * sum(p.square().sum() for p in net.parameters())


KINDS: dict[str, Kind] = {
    # grad mode, custom functions, hooks
    "no_grad": Kind(under_no_grad, parts=linear),
    "set_grad_enabled": Kind(frozen_by_mode, parts=lambda: {**linear(), "gain": nn.Parameter(torch.ones(4))}),
    "inference_mode": Kind(centred_in_inference, LOOP),
    "detach": Kind(lambda net, h: h * h.detach().sin()),
    "data": Kind(lambda net, h: h * h.data.cos()),
    "straight-through sign": Kind(lambda net, h: Straight.apply(h), LOOP),
    "gradient reversal": Kind(lambda net, h: Reverse.apply(h), LOOP),
    "a function with setup_context": Kind(lambda net, h: Scaled.apply(h, 0.7), LOOP),
    "a hook on a tensor": Kind(lambda net, h: _hooked(h * 1), LOOP),
    "the class of a tensor": Kind(lambda net, h: h.sin() if type(h) is torch.Tensor else h, orders=()),
    # Python
    "optional arguments": Kind(lambda net, h: optional(h, None, h.sin(), scale=2.0)),
    "loop on shapes": Kind(loop_on_shapes),
    "branch on a value": Kind(branches, LOOP),
    "item": Kind(lambda net, h: h * h.sum().item(), LOOP),
    "boolean index": Kind(lambda net, h: h + h[h.detach()[:, 0] > 0].sum(0), LOOP),
    "parameters()": Kind(lambda net, h: h + sum(p.sum() for p in net.parameters()), parts=linear),
    "named_parameters()": Kind(lambda net, h: F.linear(h, dict(net.named_parameters())["mid.weight"]), parts=linear),
    "state_dict()": Kind(lambda net, h: net.mid(h) @ net.state_dict()["mid.weight"], parts=linear),
    "nested functional_call": Kind(
        lambda net, h: functional_call(net.mid, {"weight": net.mid.weight.tanh()}, (h,)), parts=linear
    ),
    "hypernetwork": Kind(lambda net, h: h @ net.mid(h.mean(0)).view(4, 4), parts=lambda: {"mid": nn.Linear(4, 16)}),
    "autograd.grad": layer(lambda: nn.Linear(1, 4), physics, LOOP),
    "torch.func.grad": Kind(
        lambda net, h: h + torch.func.grad(lambda z: net.mid(z).sin().sum())(h), LOOP, parts=linear
    ),
    "checkpoint": Kind(lambda net, h: checkpoint(net.mid, h, use_reentrant=False), parts=linear),
    # writes
    "in-place functions": Kind(in_place, OPAQUE),
    "in place under no_grad": Kind(writes_behind_autograd, LOOP),
    "through data": Kind(writes_through_data, LOOP),
    "a buffer written": Kind(running_mean, OWN, lambda: {"mean": torch.zeros(4)}),
    "an attribute for the loss": Kind(
        keeps_divergence, OWN, lambda: {"kl": 0.0}, lambda net: lambda out, y: F.mse_loss(out, y) + net.kl
    ),
    "a counter": Kind(counts, OWN, lambda: {"calls": 0}),
    # linear algebra and kinks
    "solve": Kind(lambda net, h: torch.linalg.solve(squares(h), h.view(-1, 2, 2)).flatten(1), OPAQUE),
    "inv": Kind(lambda net, h: torch.linalg.inv(squares(h)).flatten(1), OPAQUE),
    "det": Kind(lambda net, h: h * torch.linalg.det(squares(h))[:, None], OPAQUE),
    "slogdet": Kind(lambda net, h: h + torch.slogdet(squares(h))[1][:, None], OPAQUE),
    "logdet": Kind(lambda net, h: h + torch.logdet(symmetric(h))[:, None], OPAQUE),
    "cholesky": Kind(lambda net, h: torch.linalg.cholesky(symmetric(h)).flatten(1), OPAQUE),
    "eigh": Kind(lambda net, h: eigenvalues_and_vectors(symmetric(spread_out(h))), OPAQUE),
    "svd": Kind(lambda net, h: torch.linalg.svdvals(spread_out(h)).repeat(1, 2), OPAQUE),
    "lstsq": Kind(lambda net, h: torch.linalg.lstsq(squares(h), h.view(-1, 2, 2)).solution.flatten(1), LOOP),
    # autograd has no second derivative there
    "a norm at zero": Kind(lambda net, h: h + (h * 0).norm(dim=1, keepdim=True), orders=("first", "reptile")),
    "complex numbers": Kind(lambda net, h: torch.fft.fft(h, dim=1).real, OPAQUE),
    "mixed dtypes": Kind(lambda net, h: h * torch.arange(4) + torch.ones(4), OPAQUE),
    "padding_idx": layer(
        lambda: nn.Embedding(5, 4, padding_idx=2), lambda net, h: h + net.mid((h.detach() > 0).sum(1)), OPAQUE),
    # layers
    "rnn": layer(lambda: nn.RNN(2, 2, batch_first=True), sequence, LOOP),
    "gru": layer(lambda: nn.GRU(2, 2, batch_first=True), sequence, LOOP),
    "lstm": layer(lambda: nn.LSTM(2, 2, batch_first=True), sequence, LOOP),
    "packed sequences": layer(lambda: nn.GRU(2, 4, batch_first=True), packed, LOOP),
    "gru cell": layer(lambda: nn.GRUCell(4, 4), lambda net, h: net.mid(h, h.sin())),
    "spectral norm": layer(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), rung=OPAQUE),
    "attention": layer(lambda: nn.MultiheadAttention(2, 1, batch_first=True), heads),
    "transformer, train": layer(encoder, lambda net, h: net.mid(h.view(-1, 2, 2)).flatten(1)),
    "transformer, eval": layer(lambda: encoder().eval(), lambda net, h: net.mid(h.view(-1, 2, 2)).flatten(1)),
    "batch norm, train": layer(lambda: nn.BatchNorm1d(4, eps=0.1)),
    "batch norm, eval": layer(lambda: nn.BatchNorm1d(4).eval()),
    "functional batch norm": Kind(
        generalised_batch_norm, OWN, lambda: {**linear(), "mean": torch.zeros(4), "var": torch.ones(4)}
    ),
    "instance norm": layer(
        lambda: nn.InstanceNorm1d(2, eps=0.1, affine=True), lambda net, h: net.mid(h.view(-1, 2, 2)).flatten(1)
    ),
    "group norm": layer(lambda: nn.GroupNorm(2, 4, eps=0.1)),
    "layer norm": layer(lambda: nn.LayerNorm(4)),
    "rms norm": layer(lambda: nn.RMSNorm(4, eps=0.1)),
    # losses
    "no_grad in the loss": Kind(lambda net, h: h, loss=self_paced),
    "parameters in the loss": Kind(lambda net, h: h, loss=penalty),
    "a function of its own in the loss": Kind(
        lambda net, h: h, LOOP, loss=lambda net: lambda out, y: F.mse_loss(Straight.apply(out), y)
    ),
    "a branch in the loss": Kind(
        lambda net, h: h,
        LOOP,
        loss=lambda net: lambda out, y: F.l1_loss(out, y) if out.mean() > 0 else F.mse_loss(out, y),
    ),
}  # fmt: skip


def _hooked(h):
    if h.requires_grad:
        h.register_hook(lambda g: 2 * g)
    return h


@functools.cache
def data():
    generator = torch.Generator().manual_seed(3)
    return tuple(
        torch.randn(2, n, d, generator=generator, dtype=torch.float64) for n, d in ((4, 4), (4, 3), (3, 4), (3, 3))
    )


@pytest.mark.parametrize("name, order", [(name, order) for name, kind in KINDS.items() for order in kind.orders])
def test_as_a_plain_loop_has_it(name, order):
    kind, net = KINDS[name], make(name)
    truth = PlainLoop(functools.partial(make, name), kind.loss, kind.loss, Loop(order, 2, Rule(lr=0.1)))(*data())
    learner = LEARNERS[order](
        net,
        inner_loss=kind.loss(net),
        inner_optimizer=fastmeta.SGD(lr=0.1),
        inner_steps=2,
        proof="off",
        backend="torch",
    )
    before = held_by(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of running statistics, which stay as they are
        out = learner(*data())
    out.loss.backward()
    assert torch.allclose(out.task_losses, truth.losses, rtol=1e-9, atol=1e-12)
    largest = max(g.norm() for g in truth.grads.values())
    for n, p in net.named_parameters():
        got = torch.zeros_like(p) if p.grad is None else p.grad
        assert (got - truth.grads[n]).norm() <= 1e-9 * largest, n
    assert rung(learner) == kind.rung, learner.explain()
    net.zero_grad()
    assert held_by(net) == before, "the user's module is as it was"


def held_by(net):
    """All that a module holds, as bytes; PyTorch pickles no parametrised module whole."""
    if any(torch.nn.utils.parametrize.is_parametrized(m) for m in net.modules()):
        return pickle.dumps(net.state_dict())
    return {k: pickle.dumps(v) for k, v in vars(net).items()}


def rung(learner):
    text = learner.explain()
    return LOOP if LOOP in text else OPAQUE if OPAQUE in text else OWN


def test_what_no_trace_can_see_is_found_by_the_proof():
    """Tensors without data are of a class of their own, which only code that compares classes notices."""
    learner = fastmeta.MAML(
        make("the class of a tensor"), inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1), proof="first"
    )
    with pytest.warns(UserWarning, match="are not used, because they are wrong"):
        out = learner(*data())
    loop = Loop("exact", 1, Rule(lr=0.1))
    truth = PlainLoop(lambda: make("the class of a tensor"), lambda net: F.mse_loss, lambda net: F.mse_loss, loop)(
        *data()
    )
    assert torch.allclose(out.task_losses, truth.losses, rtol=1e-9)
    assert rung(learner) == LOOP


@pytest.mark.parametrize("name", ["batch norm, 3d", "centred", "attention over samples"])
def test_support_statistics_of_a_module_that_mixes_samples(name):
    """Only a batch norm takes its statistics from the support set; a query sees other queries, as without it."""
    settings = dict(inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1), inner_steps=2, bn_statistics="support")
    results = []
    for backend in ("torch", "reference"):
        net = Mixed(name).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of running statistics, which stay as they are
            out = fastmeta.MAML(net, backend=backend, proof="off", **settings)(*data())
        out.loss.backward()
        results.append((out.task_losses.detach(), out.outputs, [p.grad for p in net.parameters()]))
    (losses, outputs, grads), (true_losses, true_outputs, true_grads) = results
    assert torch.allclose(losses, true_losses, rtol=1e-9)
    assert torch.allclose(outputs, true_outputs, rtol=1e-9)
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-11) for a, b in zip(grads, true_grads, strict=True))


class Mixed(nn.Module):
    """A batch norm, and what mixes samples beside it."""

    def __init__(self, name):
        torch.manual_seed(0)
        super().__init__()
        self.name, self.first, self.norm, self.last = name, nn.Linear(4, 4), nn.BatchNorm1d(4, eps=0.1), nn.Linear(4, 3)
        self.deep = nn.BatchNorm3d(2, eps=0.1) if name == "batch norm, 3d" else None

    def forward(self, x):
        h = self.norm(self.first(x).tanh())
        if self.deep is not None:
            h = self.deep(h.view(-1, 2, 2, 1, 1)).flatten(1)
        elif self.name == "centred":
            h = h - h.mean(0)
        else:
            h = F.scaled_dot_product_attention(h[None], h[None], h[None])[0]
        return self.last(h)
