"""The last rung on parameters of several dtypes, tensors of other sizes, and tasks that diverge."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from meta_steps import Batch, mlp, regression
from plain_loop import LEARNERS, Truth, agrees, plain_loop
from torch import nn

import fastmeta

ALGORITHMS = tuple(LEARNERS)


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class InDtype(nn.Module):
    """A layer of another dtype in front of one of float64."""

    def __init__(self, dtype):
        super().__init__()
        self.a, self.b, self.dtype = nn.Linear(2, 4).to(dtype), nn.Linear(4, 1), dtype

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.to(self.dtype))).double())


class Spectrum(nn.Module):
    """A Fourier layer: complex parameters between real ones."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 1)
        self.w = nn.Parameter(torch.randn(4, 4, dtype=torch.complex128))

    def forward(self, x):
        spectrum = torch.fft.rfft(torch.tanh(self.a(x)), dim=0) @ self.w
        return self.b(torch.fft.irfft(spectrum, n=x.shape[0], dim=0))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 1, dtype=torch.complex128))

    def forward(self, x):
        return torch.tanh((x.to(self.w.dtype) @ self.w).abs())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "make, rtol",
    [
        (lambda: InDtype(torch.float32), 2e-6),
        (lambda: InDtype(torch.bfloat16), 2e-2),
        (Spectrum, 1e-10),
        (Complex, 1e-10),
    ],
    ids=["float32", "bfloat16", "complex beside real", "complex"],
)
def test_parameters_of_several_dtypes(make, rtol, algorithm):
    model, batch = make(), regression(support=6, query=4)
    agrees(model, F.mse_loss, batch, algorithm=algorithm, rtol=rtol)
    learners = LEARNERS[algorithm](model, inner_loss=F.mse_loss, backend="reference").adapt(*batch[:2])
    for name, p in learners.parameters().items():
        assert p.dtype == model.get_parameter(name).dtype


@pytest.mark.parametrize("optimizer", [fastmeta.Adam(lr=0.1), fastmeta.SGD(lr=0.1, momentum=0.9)], ids=["adam", "sgd"])
def test_complex_parameters_follow_torch_optim(optimizer):
    model, batch = Complex(), regression(tasks=1)
    learner = fastmeta.MAML(
        model,
        inner_loss=F.mse_loss,
        inner_optimizer=optimizer,
        inner_steps=3,
        inner_clip_norm=0.05,
        backend="reference",
    )
    got = learner.adapt(*batch[:2]).parameters()["w"][0]
    plain = {"Adam": torch.optim.Adam, "SGD": torch.optim.SGD}[type(optimizer).__name__]
    options = {} if isinstance(optimizer, fastmeta.Adam) else {"momentum": 0.9}
    outer = plain(model.parameters(), lr=0.1, **options)
    for _ in range(3):
        outer.zero_grad()
        F.mse_loss(model(batch.support_x[0]), batch.support_y[0]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        outer.step()
    torch.testing.assert_close(got, model.w, rtol=1e-6, atol=1e-8)


def test_adapting_further_and_learned_rates_with_mixed_dtypes():
    model, batch = InDtype(torch.float32), regression()
    options = {"inner_loss": F.mse_loss, "backend": "reference"}
    learner = fastmeta.MAML(model, inner_optimizer=fastmeta.SGD(lr=0.1, momentum=0.9), **options)
    once = learner.adapt(*batch[:2], steps=3).parameters()
    twice = learner.adapt(*batch[:2], steps=1).adapt_further(*batch[:2], steps=2).parameters()
    for name, p in once.items():
        assert torch.equal(p, twice[name]), name
    rates = fastmeta.MAML(model, inner_optimizer=fastmeta.SGD(lr=fastmeta.PerParameter(0.1)), inner_steps=2, **options)
    assert torch.allclose(rates(*batch).task_losses, plain_loop(model, F.mse_loss, batch).losses, rtol=1e-6)
    rates(*batch).loss.backward()
    assert all(p.grad.norm() > 0 for p in rates.learned.parameters())


class Graph(nn.Module):
    """Nodes [N, 3], edges [2, E], a number and a vector for the whole graph."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(6, 1)

    def forward(self, nodes, edges, scale, vector):
        h = torch.tanh(self.a(nodes)) * scale
        h = h.index_add(0, edges[1], h[edges[0]])
        return self.b(torch.cat([h, vector.expand(len(h), -1)], 1)).mean()


def graphs(nodes, edges):
    return torch.randn(3, nodes, 3), torch.randint(nodes, (3, 2, edges)), torch.rand(3), torch.randn(3, 2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tensors_of_other_sizes_in_one_task(algorithm):
    batch = Batch(graphs(6, 9), torch.randn(3), graphs(5, 7), torch.randn(3))
    agrees(Graph(), lambda out, y: (out - y).square(), batch, algorithm=algorithm)


def test_interior_and_boundary_points():
    model = mlp(2, 5, 1)

    def points(n, m):
        return {"inside": torch.randn(3, n, 2), "edge": torch.randn(3, m, 2)}

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, inside, edge):
            return self.net(inside), self.net(edge)

    batch = Batch(points(9, 2), None, points(8, 3), None)
    agrees(Both(), lambda out, _: (out[0] - 1).square().mean() + out[1].square().mean(), batch)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_jagged_tensors_hold_tasks_of_other_sizes(algorithm):
    model, sizes = mlp(2, 4, 1), ((4, 6), (2, 3))
    tasks = [Batch(*(torch.randn(1, n, d) for n in one for d in (2, 1))) for one in zip(*sizes, strict=True)]
    truths = [plain_loop(model, F.mse_loss, one, algorithm=algorithm) for one in tasks]
    grads = {name: sum(truth.grads[name] for truth in truths) / 2 for name in truths[0].grads}
    truth = Truth(torch.cat([truth.losses for truth in truths]), grads, [])
    jagged = [torch.nested.nested_tensor([x[0] for x in xs], layout=torch.jagged) for xs in zip(*tasks, strict=True)]
    agrees(model, F.mse_loss, Batch(*jagged), algorithm=algorithm, truth=truth)


def test_autocast_in_forward():
    """Bfloat16's own error is 1e-3; one task, so that no mean changes how cotangents are rounded."""

    class Autocast(nn.Sequential):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                h = super().forward(x)
            return h.to(x.dtype)

    model, batch = Autocast(*mlp(2, 4, 1)).float(), regression(tasks=1, dtype=torch.float32)
    agrees(model, F.mse_loss, batch, rtol=1e-5)


def test_a_rule_of_ones_own_takes_real_rows():
    class Signs(fastmeta.optim.Rule):
        def step(self, phi, g, state, k, meta):
            return phi - 0.01 * g.sign(), state

    learner = fastmeta.MAML(Complex(), inner_loss=F.mse_loss, inner_optimizer=Signs(), backend="reference")
    with pytest.raises(ValueError, match=r"Signs steps rows of real numbers, .* complex parameters"):
        learner(*regression())
    model, batch = InDtype(torch.float32), regression()
    got = fastmeta.MAML(model, inner_loss=F.mse_loss, inner_optimizer=Signs(), backend="reference").adapt(*batch[:2])
    for name, p in got.parameters().items():
        assert torch.allclose((p - model.get_parameter(name)).abs().max(), torch.tensor(0.01, dtype=p.dtype), rtol=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_outputs_of_other_sizes_in_other_tasks_come_as_a_tuple(algorithm):
    class Positive(nn.Sequential):
        def forward(self, x):
            return super().forward(x[x[:, 0] > 0])

    model, batch = Positive(*mlp(2, 4, 1)), regression(support=12, query=9)
    out = agrees(model, lambda out, y: (out - y.mean()).square().mean(), batch, algorithm=algorithm)
    assert isinstance(out.outputs, tuple)
    assert [len(y) for y in out.outputs] == (batch.query_x[:, :, 0] > 0).sum(1).tolist()


def test_outputs_that_are_no_tensors_are_refused():
    class Number(nn.Sequential):
        def forward(self, x):
            return super().forward(x), 0.5

    learner = fastmeta.MAML(Number(*mlp(2, 4, 1)), inner_loss=lambda out, y: F.mse_loss(out[0], y), backend="reference")
    with pytest.raises(TypeError, match=r"model must return tensors, .* got a float"):
        learner(*regression())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_diverged_task_leaves_the_others_alone(algorithm):
    model, batch = mlp(2, 4, 1), regression(tasks=3)
    kept = Batch(*(x[::2] for x in batch))
    truth = plain_loop(model, F.mse_loss, kept, algorithm=algorithm)
    batch.support_x[1, 0, 0] = torch.inf
    learner = LEARNERS[algorithm](
        model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.1), inner_steps=2, backend="reference"
    )
    with pytest.warns(RuntimeWarning):
        out = learner(*batch)
    assert out.finite.tolist() == [True, False, True]
    out.loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, truth.grads[name], rtol=1e-10, atol=1e-12)
