"""Comparison of starts: what is tuned, on what, and what a picture shows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastmeta
from fastmeta.tasks import Sinusoid
from fastmeta.tasks.derived import Pooled
from fastmeta.train.scores.compare import LR_FACTORS, Comparison, Curve, compare, curve_steps, tuning_episodes
from fastmeta.train.scores.evaluate import Estimate, evaluate, score
from fastmeta.train.scores.plots import plot_curves

pytestmark = pytest.mark.usefixtures("one_thread")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(1, 9), nn.Tanh(), nn.Linear(9, 1))


def learner(model: nn.Module, lr: float) -> fastmeta.MAML:
    return fastmeta.MAML(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=lr))


def compared(starts, **options) -> Comparison:
    settings = {"inner_lr": 0.02, "percent": False, "steps": (0, 2), "episodes": 12, "seed": 3} | options
    (comparison,) = compare(starts, learner, {"curves": Sinusoid()}, tuning=Sinusoid(), **settings)
    return comparison


def test_every_start_sees_the_same_episodes_at_its_own_step_size():
    starts = {"a": network(0), "b": network(1)}
    comparison = compared(starts)
    for name, curve in comparison.curves.items():
        again = evaluate(learner(starts[name], curve.inner_lr), Sinusoid(), episodes=12, steps=(0, 2), seed=3)
        assert again == curve.scores
        tried = {
            factor: evaluate(learner(starts[name], 0.02 * factor), Sinusoid(), episodes=10, steps=(2,), seed=4)[2].mean
            for factor in LR_FACTORS
        }
        assert curve.inner_lr == pytest.approx(0.02 * min(tried, key=lambda factor: tried[factor]))
    assert comparison.curves["a"].scores[0] != comparison.curves["b"].scores[0]


def test_a_step_size_that_diverges_is_not_chosen():
    comparison = compared({"a": network(0)}, inner_lr=5.0, steps=(0, 9))
    assert comparison.curves["a"].inner_lr == pytest.approx(0.05)
    assert comparison.curves["a"].scores[9].mean < comparison.curves["a"].scores[0].mean


def test_table():
    scores = {0: Estimate(0.2, 0.01, 9), 1: Estimate(0.815, 0.0212, 9)}
    lines = Comparison("tasks", True, {"from scratch": Curve(0.4, scores)}).table().splitlines()
    assert lines[0].split() == ["start", "step", "size", "0", "steps", "1", "step"]
    assert lines[1].split() == ["from", "scratch", "0.4", "20.00", "±", "1.00", "81.50", "±", "2.12"]


def test_steps_of_a_curve():
    assert curve_steps(0) == (0,)
    assert curve_steps(1) == (0, 1)
    assert curve_steps(7) == (0, 1, 5, 7)
    assert curve_steps(20) == (0, 1, 5, 20)
    assert curve_steps(300) == (0, 1, 5, 20, 50, 200, 300)


def test_few_episodes_are_tuned_on_fewer():
    assert [tuning_episodes(n) for n in (4, 100, 400)] == [10, 25, 50]


def test_picture(tmp_path):
    """Two panels; what diverged leaves a gap."""
    scores = {0: Estimate(2.0, 0.1, 9), 1: Estimate(math.inf, math.nan, 9), 5: Estimate(1.0, 0.2, 9)}
    comparison = Comparison("tasks", False, {"from scratch": Curve(0.4, scores), "another": Curve(0.4, scores)})
    plot_curves([comparison, comparison], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_pooled_training_is_the_mean_over_all_samples():
    """A learner without inner steps on pooled tasks has the gradient of the plain mean loss."""
    family = Sinusoid(shots=5, queries=7, dtype=torch.float64)
    episodes = Pooled(family).sample(4, torch.Generator().manual_seed(0))
    plain = family.sample(4, torch.Generator().manual_seed(0))
    model = network(0).double()
    out = fastmeta.MAML(model, inner_loss=F.mse_loss, inner_steps=0)(*episodes)
    out.loss.backward()
    x, y = (torch.cat([plain[i], plain[i + 2]], 1).flatten(0, 1) for i in (0, 1))
    truth = torch.autograd.grad(F.mse_loss(model(x), y), list(model.parameters()))
    for p, gradient in zip(model.parameters(), truth, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_scores_leave_out_what_was_not_asked():
    logits = torch.zeros(1, 2, 3, 4)  # [T, M, symbols, length]
    logits[:, :, 1] = 1.0
    targets = torch.tensor([[[1, -100, -100, 0], [-100, 1, 1, 1]]])
    assert score(logits, targets).tolist() == [pytest.approx(4 / 5)]
    assert score((torch.ones(1, 2, 3), torch.zeros(1)), torch.zeros(1, 2, 3)).tolist() == [1.0]
