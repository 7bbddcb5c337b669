"""The adjoints that learned rules write out, against `torch.func.vjp` of their steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastmeta.optim import Curvature, LearnedUpdate, LSTMRule, Rule

SHAPES = (torch.Size([3, 2]), torch.Size([3]), torch.Size([2, 3, 2, 2]), torch.Size([]))
ROWS = SimpleNamespace(  # as fastmeta.program.layout.Layout has them in float64
    names=("a", "b", "c", "d"), shapes=SHAPES, offsets=(0, 6, 10, 34), padding=(0, 1, 0, 1), size=36,
    dtype=torch.float64, device=torch.device("cpu"),
)  # fmt: skip
RULES = {
    "curvature": lambda: Curvature(lr=0.3),
    "curvature, rates of steps": lambda: Curvature(lr=(0.3, 0.2, 0.1)),
    "lstm": lambda: LSTMRule.new(hidden=3),
    "lstm, gates fed back": lambda: LSTMRule.new(hidden=3, gates="activation", p=2.0),
    "learned": lambda: LearnedUpdate.new(hidden=(3, 4), scale=0.5),
    "learned, one layer": lambda: LearnedUpdate.new(hidden=(3,), p=1.0, eps=1e-3),
    "learned, no preprocessing": lambda: LearnedUpdate.new(hidden=(3, 2), p=None, scale=1.0),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("tasks", [1, 3])
def test_vjp(name, tasks):
    rule = RULES[name]()
    rule.learned.build(ROWS, 3)
    with torch.no_grad():
        for p in rule.learned.parameters():
            p.add_(0.3 * torch.randn_like(p))
    meta = tuple(x.detach() for x in rule.meta(ROWS, 3))
    rule = rule.structure()
    phi, g, lam = torch.randn(3, tasks, ROWS.size, dtype=torch.float64)
    g = g * 10 ** torch.empty_like(g).uniform_(-7, 2)  # small and large ones take other branches
    g[:, [9, 35]] = lam[:, [9, 35]] = 0.0  # the padding
    state = tuple(torch.randn_like(s) for s in rule.init(phi))
    sigma = tuple(torch.randn_like(s) for s in state)
    given = {"loss": torch.tensor([0.3, 1e-9, 20.0], dtype=torch.float64)[:tasks]} if rule.reads_loss else {}
    got = rule.vjp(phi, g, state, 1, meta, lam, sigma, wanted=True, **given)
    want = Rule.vjp(rule, phi, g, state, 1, meta, lam, sigma, wanted=True, **given)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(got.direct, want.direct, **close)
    torch.testing.assert_close(got.v * got.factor, want.v, **close)
    torch.testing.assert_close(got.state, want.state, **close)
    for i, (x, y) in enumerate(zip(got.meta, want.meta, strict=True)):
        assert x.shape == y.shape == (tasks, *meta[i].shape)
        fixed = i == 0 if name.startswith("curvature") else i == len(meta) - 1 and name.startswith("learned")
        if fixed:  # a step size, or the mask of the padding
            assert not x.any()
        else:
            torch.testing.assert_close(x, y, **close)
    if given:
        torch.testing.assert_close(got.loss, want.loss, **close)
    alone = rule.vjp(phi, g, state, 1, meta, lam, sigma, **given)
    assert alone.meta == ()
    torch.testing.assert_close(alone.v, got.v, **close)


@pytest.mark.parametrize("name", ["lstm", "learned"])
def test_a_gradient_of_exactly_zero_has_finite_adjoints(name):
    rule = RULES[name]()
    rule.learned.build(ROWS, 3)
    meta, rule = rule.meta(ROWS, 3), rule.structure()
    phi = torch.randn(2, ROWS.size, dtype=torch.float64)
    state = rule.init(phi)
    given = {"loss": torch.zeros(2, dtype=torch.float64)} if rule.reads_loss else {}
    for vjp in (rule.vjp, lambda *args, **options: Rule.vjp(rule, *args, **options)):
        pulled = vjp(phi, torch.zeros_like(phi), state, 0, meta, phi, state, wanted=True, **given)
        for x in (pulled.direct, pulled.v, *pulled.state, *pulled.meta):
            assert torch.isfinite(x).all()
