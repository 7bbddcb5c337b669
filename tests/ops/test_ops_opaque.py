"""Opaque ops: sweeps from torch.func, for any number and kind of inputs and outputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from meta_steps import assert_agrees_with_reference, regression
from op_harness import check_op, randn
from torch import nn

import fastmeta
from fastmeta.engine.objective import Context, Data, Objective
from fastmeta.ops.dropout import task_keys
from fastmeta.ops.mse import MSE
from fastmeta.ops.opaque import Opaque
from fastmeta.program.program import Program

T, N = 3, 5


def opaque(fn):
    return Opaque(lambda *xs: fn(*xs) if isinstance(fn(*xs), tuple) else (fn(*xs),), "opaque")


def bilinear(x, w):
    return torch.einsum("nd,de->ne", x.tanh(), w.sin())


def two(x, w):
    return x.exp() @ w, (w * w).sum(0) + x.sum()


def picked(x, index, w):
    return x[index] * w.cos()


def largest(x, w):
    return torch.max(x * w.sin(), dim=1)


def test_one_output():
    check_op(opaque(bilinear), bilinear, randn(T, N, 4), randn(T, 4, 2))


def test_several_outputs():
    check_op(opaque(two), two, randn(T, N, 4), randn(T, 4, 2))


def test_outputs_that_nobody_reads():
    for unused in ([0], [1]):
        check_op(opaque(two), two, randn(T, N, 4), randn(T, 4, 2), unused=unused)


def test_integer_inputs():
    check_op(opaque(picked), picked, randn(T, N, 4), torch.randint(0, N, (T, 3)), randn(T, 4))


def test_integer_outputs_have_no_tangent():
    def plain(x, w):
        return tuple(largest(x, w))

    op = Opaque(plain, "max", smooth=(True, False))
    inputs = randn(T, N, 4), randn(T, 4)
    check_op(op, plain, *inputs)


def test_an_output_that_ignores_some_inputs():
    def plain(x, w):
        return x.square(), w.sin()

    check_op(Opaque(plain, "apart"), plain, randn(T, N, 4), randn(T, 4))


def test_random_draws_are_alike_in_every_sweep():
    op = Opaque(lambda x: (F.dropout(x, 0.5) * x,), "random", random=True)
    x, keys = randn(T, N, 7), task_keys(5, T, torch.device("cpu"))
    before = torch.get_rng_state()
    y, saved = op.forward(x, keys)
    assert torch.equal(torch.get_rng_state(), before)
    mask = torch.where(y != 0, 2.0, 0.0).double()
    assert 0 < (mask == 0).sum() < mask.numel()
    assert not torch.equal(mask[0], mask[1])
    dy, x_dot, dy_dot = (randn(T, N, 7) for _ in range(3))
    needs = (True, False)
    torch.testing.assert_close(op.backward(saved, dy, needs)[0], 2 * x * mask * dy)
    y_dot, saved_dot = op.forward_dot(saved, (x_dot, None))
    torch.testing.assert_close(y_dot, 2 * x * mask * x_dot)
    got = op.backward_dot(saved, saved_dot, dy, dy_dot, needs)[0]
    torch.testing.assert_close(got, 2 * mask * (x_dot * dy + x * dy_dot))


class Lookup(nn.Module):
    """An index computed by an op without sweeps of its own goes into one that has them."""

    def __init__(self):
        super().__init__()
        self.scores, self.table = nn.Linear(4, 6), nn.Embedding(6, 2)

    def forward(self, x):
        best, index = torch.max(self.scores(x), 1)
        return self.table(index) * best[:, None]


def test_an_index_computed_from_parameters_has_no_tangent():
    module = Lookup().double()
    x, y = randn(T, N, 4), randn(T, N, 2)
    program = Program(module)
    objective = Objective(program.plan(x), MSE(), program.layout, program.shared, targets_wanted=(False,))
    context = Context((), program.constants(), task_keys(0, T, x.device))
    data = Data((x,), (y,))
    phi, v = randn(T, program.layout.size), randn(T, program.layout.size)
    at = objective.evaluate(phi, data, context)
    got = objective.hessian_product(at, data, objective.gradient(at, data, keep=True)[1], v).phi

    def loss(phi, x, y):
        values = {n: p[0] for n, p in program.layout.named(phi[None]).items()}
        return F.mse_loss(torch.func.functional_call(module, values, x), y)

    def product(phi, x, y, v):
        return torch.func.vjp(torch.func.grad(lambda p: loss(p, x, y)), phi)[1](v)[0]  # the Hessian is symmetric

    torch.testing.assert_close(got, torch.func.vmap(product)(phi, x, y, v), rtol=1e-10, atol=1e-12)


def test_random_draws_of_a_task_do_not_depend_on_the_others():
    op = Opaque(lambda x: (F.dropout(x, 0.5),), "random", random=True)
    x, keys = torch.ones(4, 50, dtype=torch.float64), task_keys(1, 4, torch.device("cpu"))
    together, _ = op.forward(x, keys)
    apart = [op.forward(x[t : t + 1], keys[t : t + 1])[0] for t in range(4)]
    assert torch.equal(together, torch.cat(apart))
    assert len({tuple(row.tolist()) for row in together}) == 4


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize(
    "fn", [F.mish, lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none")], ids=["mish", "huber_loss"]
)
def test_functions_without_a_forward_mode_rule(fn):
    def composed(x, w):
        return fn(torch.einsum("nd,de->ne", x, w))

    x, w, x_dot, w_dot = randn(T, N, 4), randn(T, 4, 3), randn(T, N, 4), randn(T, 4, 3)
    op, dy, dy_dot = opaque(composed), randn(T, N, 3), randn(T, N, 3)
    _, saved = op.forward(x, w)
    y_dot, saved_dot = op.forward_dot(saved, (x_dot, w_dot))
    got = op.backward_dot(saved, saved_dot, dy, dy_dot, (True, True))
    h = 1e-6
    ahead, behind = (op.forward(x + s * x_dot, w + s * w_dot) for s in (h, -h))
    torch.testing.assert_close(y_dot, (ahead[0] - behind[0]) / (2 * h), rtol=1e-6, atol=1e-7)
    ahead, behind = (op.backward(saved, dy + s * dy_dot, (True, True)) for (_, saved), s in ((ahead, h), (behind, -h)))
    for d, a, b in zip(got, ahead, behind, strict=True):
        torch.testing.assert_close(d, (a - b) / (2 * h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gaussian_nll_loss", "rrelu"])
def test_functions_that_vmap_refuses(name):
    torch.manual_seed(0)
    activation = nn.RReLU().eval() if name == "rrelu" else nn.Tanh()
    model = nn.Sequential(nn.Linear(2, 5), activation, nn.Linear(5, 1)).double()

    def loss(outputs, targets):
        if name == "rrelu":
            return F.mse_loss(outputs, targets)
        return F.gaussian_nll_loss(outputs, targets, torch.ones_like(outputs))

    assert_agrees_with_reference(model, regression(), loss=loss)


def test_an_error_of_the_function_itself_is_raised_whatever_its_words():
    def broken(*_):
        raise RuntimeError("vmap")

    with pytest.raises(RuntimeError, match=r"^vmap$"):
        Opaque(broken, "broken").forward(randn(T, N))
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied \(5x4 and 7x2\)"):
        Opaque(lambda x: (x @ torch.ones(7, 2, dtype=x.dtype),), "mismatch").forward(randn(T, N, 4))


class Doubled(torch.autograd.Function):
    """A user's own function with neither a vmap nor a jvp rule."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy


def test_an_autograd_function_without_rules():
    def fn(x, w):
        return Doubled.apply(x.sin()) * w

    x, w, x_dot, w_dot, dy, dy_dot = (randn(T, N) for _ in range(6))
    op, needs = opaque(fn), (True, True)
    y, saved = op.forward(x, w)
    torch.testing.assert_close(y, 2 * x.sin() * w)
    y_dot, saved_dot = op.forward_dot(saved, (x_dot, w_dot))
    torch.testing.assert_close(y_dot, 2 * x.cos() * x_dot * w + 2 * x.sin() * w_dot)
    dx, dw = op.backward_dot(saved, saved_dot, dy, dy_dot, needs)
    torch.testing.assert_close(dw, 2 * (x.sin() * dy_dot + x.cos() * x_dot * dy))
    torch.testing.assert_close(dx, 2 * ((w_dot * dy + w * dy_dot) * x.cos() - w * dy * x.sin() * x_dot))


class RefusedBackward(torch.autograd.Function):
    """x, whose backward looks at its data: vmap takes the one and refuses the other."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, dy):
        return dy if bool(dy.isfinite().all()) else dy * 0


def test_random_draws_are_alike_where_vmap_refuses_one_sweep():
    op = Opaque(lambda x: (RefusedBackward.apply(F.dropout(x, 0.5)),), "random", random=True)
    x, keys = torch.ones(T, 50, dtype=torch.float64), task_keys(5, T, torch.device("cpu"))
    y, saved = op.forward(x, keys)
    assert torch.equal(op.backward(saved, torch.ones_like(y), (True, False))[0], y)


class Normed(nn.Module):
    """What weight_norm computes, written out."""

    def __init__(self, v, g, b):
        super().__init__()
        self.v, self.g, self.b = (nn.Parameter(t.detach().clone()) for t in (v, g, b))

    def forward(self, x):
        return F.linear(x, self.g * self.v / self.v.pow(2).sum(1, keepdim=True).sqrt(), self.b)


def test_weight_norm_has_the_right_second_derivative():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 5)).double()
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    batch, gradients = regression(), []
    for first in (layer, Normed(v, g, layer.bias)):
        torch.manual_seed(0)
        model = nn.Sequential(first, nn.Tanh(), nn.Linear(5, 1)).double()
        learner = fastmeta.MAML(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.3), inner_steps=2)
        assert "opaque" not in "\n".join(line for line in learner.explain().splitlines() if "linear" in line)
        learner(*batch).loss.backward()
        gradients.append([first.v.grad, first.g.grad] if isinstance(first, Normed) else [v.grad, g.grad])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


def test_a_scaled_sum_keeps_its_precision():
    """Under vmap, PyTorch's forward mode gives 0.1 · (a tensor without dimensions) a tangent in float64."""
    op = Opaque(lambda x: (0.1 * (x * x).mean(),), "scaled")
    x, dot, one = torch.rand(T, N), torch.rand(T, N), torch.ones(T)
    (value,) = op.backward_dot((x,), (dot,), one, one, (True,))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, 0.2 / N * (x + dot))


def test_a_loss_of_scaled_terms():
    def loss(outputs, targets):
        return F.mse_loss(outputs, targets) + 0.1 * outputs.square().mean()

    episodes = regression()
    module = nn.Sequential(nn.Linear(episodes[0].shape[2], 5), nn.Tanh(), nn.Linear(5, episodes[1].shape[2]))
    optimizer = fastmeta.SGD(lr=0.1)
    losses = [
        fastmeta.MAML(module.to(dtype), inner_loss=loss, inner_optimizer=optimizer, inner_steps=2)(
            *(x.to(dtype) for x in episodes)
        ).loss
        for dtype in (torch.float32, torch.float64)
    ]
    assert losses[0].dtype == torch.float32
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
