"""Any module: the torch backend against the reference in float64, and what explain() says of how it ran."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from meta_steps import assert_agrees_with_reference, classification, mlp, regression, relative, step
from torch import nn

import fastmeta
from fastmeta.ops.dropout import task_keys
from fastmeta.program.program import Program


class ResidualBlock(nn.Module):
    """Of ResNet-12: three convolutions beside a 1 × 1 one, then a pool."""

    def __init__(self, fan_in, width):
        super().__init__()
        widths = (fan_in, width, width)
        self.convs = nn.ModuleList(nn.Conv2d(w, width, 3, padding=1, bias=False) for w in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, track_running_stats=False) for _ in range(4))
        self.short = nn.Conv2d(fan_in, width, 1, bias=False)

    def forward(self, x):
        y = x
        for conv, norm in zip(self.convs[:2], self.norms[:2], strict=True):
            y = F.leaky_relu(norm(conv(y)), 0.1)
        y = self.norms[2](self.convs[2](y)) + self.norms[3](self.short(x))
        return F.max_pool2d(F.leaky_relu(y, 0.1), 2, ceil_mode=True)


def resnet12():
    blocks = [ResidualBlock(fan_in, width) for fan_in, width in ((2, 3), (3, 4), (4, 3), (3, 5))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, length, width = x.shape
        heads = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        scores = q.matmul(k.transpose(-2, -1)) / (width // self.heads) ** 0.5
        y = F.softmax(scores, dim=-1).matmul(v)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class EncoderLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x):
        x = self.norms[0](x + self.attention(x))
        return self.norms[1](x + self.down(F.gelu(self.up(x))))


class Transformer(nn.Module):
    """Tokens [N, L] → class logits, with learned positions."""

    def __init__(self, encoder, length=5):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 6), nn.Embedding(length, 6)
        self.encoder, self.head = encoder, nn.Linear(6, 3)

    def forward(self, x):
        x = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        return self.head(self.encoder(x).mean(1))


def written_transformer():
    return Transformer(nn.Sequential(EncoderLayer(6, 2), EncoderLayer(6, 2)))


def torch_transformer():
    layer = nn.TransformerEncoderLayer(6, 2, 7, dropout=0.0, activation=F.gelu, batch_first=True)
    return Transformer(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


class Recurrent(nn.Module):
    """An LSTM cell unrolled over x [N, L, D]."""

    def __init__(self, written):
        super().__init__()
        self.written = written
        self.cell = nn.Linear(3 + 4, 16) if written else nn.LSTMCell(3, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = c = torch.zeros_like(x[:, 0, :1]).expand(-1, 4)
        for t in range(4):
            now = x[:, t]
            if self.written:
                i, f, g, o = self.cell(torch.cat([now, h], 1)).chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                h, c = self.cell(now, (h, c))
        return self.head(h)


class Branching(nn.Module):
    """Its control flow depends on a value's length."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        y = self.first(x)
        if len(list(y)) > 1:
            y = y - y.mean(0)
        return self.last(torch.tanh(y))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)])

    def forward(self, x):
        first, second, last = self.layers
        y = F.relu(first(x), inplace=True)
        z = second(y)
        same = z
        z += y
        z /= 2.0
        z *= 1.5
        z -= 0.1
        return last(torch.tanh(same))


class InPlaceFunctions(InPlace):
    """Calls that write into what they are given without a trailing `inplace`."""

    def forward(self, x):
        first, middle, last = self.layers
        y = middle(first(x)) * 1
        same = y
        y **= 2
        torch.exp_(y[:, :2])
        return last(torch.tanh(same + torch.sigmoid_(y.sum(1, keepdim=True))))


class InPlaceThroughView(InPlace):
    def forward(self, x):
        first, middle, last = self.layers
        y = middle(first(x))
        y.view(-1).add_(0.5).mul_(2.0)
        return last(torch.tanh(y))


class Standardised(nn.Module):
    """Weight standardisation: the convolution's weight is computed from the parameter."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3, stride=2), nn.Linear(16, 3)

    def forward(self, x):
        w = self.conv.weight
        centred = w - w.mean((1, 2, 3), keepdim=True)
        w = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return self.head(F.silu(F.conv2d(x, w, self.conv.bias, stride=2)).flatten(1))


class Awkward(nn.Module):
    """Constants, comparisons, indices and complex numbers in the middle of a module; a parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.scale, self.shift = nn.Parameter(torch.tensor(1.3)), nn.Parameter(torch.randn(6))
        self.fixed = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)  # no buffer

    def forward(self, x):
        y = self.first(x) * self.scale + self.shift * self.fixed
        y = torch.where(y > 0, y, y.sin()) + y.max(1, keepdim=True).values
        spectrum = torch.fft.rfft(y, dim=1) * (1.0 + 0.3j)
        y = y + torch.fft.irfft(spectrum * torch.fft.rfft(y.tanh(), dim=1), n=6, dim=1)
        return self.last(y * torch.tensor([1.0, -1.0, 2.0, 1.0, 0.5, 1.0], dtype=y.dtype, device=y.device))


def tokens(**sizes):
    batch = classification(5, **sizes)
    return batch._replace(support_x=token(batch.support_x), query_x=token(batch.query_x))


def token(x):
    return (x.abs() * 7).long() % 11


MODULES = {
    "resnet12": (resnet12, lambda: classification(2, 9, 9, support=6, query=4)),
    "transformer": (written_transformer, tokens),
    "nn.TransformerEncoder": (torch_transformer, tokens),
    "lstm": (lambda: Recurrent(True), lambda: classification(4, 3)),
    "nn.LSTMCell": (lambda: Recurrent(False), lambda: classification(4, 3)),
    "untraceable": (Branching, lambda: classification(4)),
    "in-place": (InPlace, lambda: classification(4)),
    "in-place-functions": (InPlaceFunctions, lambda: classification(4)),
    "in-place-through-view": (InPlaceThroughView, lambda: classification(4)),
    "weight-standardisation": (Standardised, lambda: classification(2, 6, 6)),
    "awkward": (Awkward, lambda: classification(4)),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", MODULES)
def test_exact_for(name):
    make, data = MODULES[name]
    # as many samples as tasks: a value that lost its task dimension would broadcast, unseen
    model, batch = make().double(), data()
    learner = assert_agrees_with_reference(model, batch)
    if name in ("nn.TransformerEncoder", "transformer"):  # attention without dropout draws nothing
        state = torch.get_rng_state()
        learner(*batch)
        assert torch.equal(torch.get_rng_state(), state)


def test_as_many_tasks_as_samples():
    batch = classification(4, tasks=5, support=5, query=5)
    assert_agrees_with_reference(Awkward().double(), batch)


def test_query_normalised_by_support_statistics():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(12, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), nn.Linear(5, 3),
    ).double()  # fmt: skip
    batch = classification(2, 6, 6, support=6, query=2)
    learner = assert_agrees_with_reference(model, batch, bn_statistics="support")
    other = step(fastmeta.MAML(model, inner_optimizer=learner.inner_optimizer, inner_steps=2), batch)
    assert relative(other.losses, step(learner, batch).losses) > 1e-2
    # the output for a query sample does not depend on the other query samples
    one = batch._replace(query_x=batch.query_x[:, :1], query_y=batch.query_y[:, :1])
    assert relative(learner(*one).outputs, learner(*batch).outputs[:, :1]) < 1e-10


class Noisy(nn.Module):
    """Noise of every kind: a layer's, a function's, and plain random numbers."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.last, self.drop = nn.Linear(3, 8), nn.Linear(8, 1), nn.Dropout(0.4)

    def forward(self, x):
        y = torch.tanh(self.first(x))
        if self.kind == "layer":
            y = self.drop(y)
        elif self.kind == "alpha":
            y = F.alpha_dropout(y, 0.4, self.training)
        elif self.kind == "noise":
            y = y * (1 + torch.randn_like(y))
        elif list(y):  # untraceable
            y = F.dropout(y, 0.4, self.training)
        return self.last(y)


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("kind", ["layer", "alpha", "noise", "whole"])
def test_noise_is_one_and_the_same_in_all_sweeps_of_a_step(kind, memory):
    """The meta-gradient is the derivative of the loss with the noise held fixed: by finite differences."""
    model, batch = Noisy(kind).double(), regression(features=3)
    options = {"inner_loss": lambda y, t: (y - t).square().mean(), "inner_optimizer": fastmeta.SGD(lr=0.3)}
    learner = fastmeta.MAML(model, inner_steps=3, memory=memory, **options)

    def run():
        torch.manual_seed(3)
        return learner(*batch)

    learner.zero_grad()
    run().loss.backward()
    direction = [torch.randn_like(p) for p in model.parameters()]
    slope = sum((p.grad * v).sum() for p, v in zip(model.parameters(), direction, strict=True))
    values = []
    for h in (1e-5, -2e-5):
        with torch.no_grad():
            for p, v in zip(model.parameters(), direction, strict=True):
                p.add_(v, alpha=h)
            values.append(run().loss)
    difference = (values[0] - values[1]) / 2e-5
    assert slope.abs() > 1e-2
    assert abs(difference / slope - 1) < 1e-6
    torch.manual_seed(4)
    assert relative(learner(*batch).loss, values[1]) > 1e-3  # another draw is another loss
    # learners compute a query pass again for its gradient
    learner.zero_grad()
    learners = learner.adapt(batch.support_x, batch.support_y, steps=0)
    outputs = learners(batch.query_x)
    outputs.sum().backward()
    # y = W n + b and d/dW of its sum is the sum of n: W · dW = sum of (y - b)
    expected = (outputs - model.last.bias).sum()
    assert relative((model.last.weight * model.last.weight.grad).sum(), expected) < 1e-10


class WritesIntoItsInput(nn.Linear):
    """Not traced, for its control flow depends on a value."""

    def forward(self, x):
        if len(list(x)) > 1:
            x.sin_()
            x.mul_(self.bias.sum())
        return super().forward(x)


def test_a_module_that_writes_into_its_input_leaves_the_data_alone():
    model, x = WritesIntoItsInput(4, 3).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    before, program = x.clone(), Program(model)
    params = [p.detach().expand(2, *p.shape) for p in model.parameters()]
    plan = program.plan(x)
    (y,), tape = plan.forward(params, (), [x], program.constants(), task_keys(0, 2, x.device))
    grads, _ = plan.backward(tape, [torch.ones_like(y)])
    assert torch.equal(x, before)
    out = torch.stack([model(one.clone()) for one in x])
    out.sum().backward()
    torch.testing.assert_close(y, out.detach())
    for got, p in zip(grads.params, model.parameters(), strict=True):
        torch.testing.assert_close(got.sum(0), p.grad)


def test_a_draw_that_a_trace_would_hold_fixed_is_drawn_anew():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * torch.rand(1, dtype=torch.float64)

    learner = fastmeta.MAML(Scaled(3, 1).double(), inner_loss=lambda y, t: (y - t).square().mean())
    batch = regression(features=3)
    assert relative(learner(*batch).outputs, learner(*batch).outputs) > 1e-3


def test_a_loss_that_draws_runs_task_by_task():
    def loss(y, t):
        return (F.dropout(y, 0.5) - t).square().mean()

    learner = fastmeta.MAML(mlp(2, 5, 1), inner_loss=loss)
    batch = regression()
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(learner(*batch).loss)
    assert torch.equal(*values)
    assert "task by task under plain autograd: inner_loss draws random numbers" in learner.explain()
