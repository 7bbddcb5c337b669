"""Accuracy and loss on new tasks, with their confidence intervals."""

from __future__ import annotations

import math

import pytest
import torch
from training import learner

import fastmeta
from fastmeta.tasks import Sinusoid
from fastmeta.train.scores.evaluate import Estimate, evaluate, score

pytestmark = pytest.mark.usefixtures("one_thread")


def test_confidence_interval():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    estimate = Estimate.of(values)
    assert estimate.mean == 4
    assert estimate.half_width == pytest.approx(1.96 * math.sqrt(38 / 3) / 2)
    assert str(estimate) == "4 ± 3.5"
    assert Estimate(0.8312, 0.0123, 600).percent() == "83.12 ± 1.23 %"
    assert math.isnan(Estimate.of(values[:1]).half_width)


def test_score():
    logits = torch.tensor([[[0.0, 1.0], [3.0, 2.0], [0.0, 1.0]], [[1.0, 0.0]] * 3])
    labels = torch.tensor([[1, 0, 0], [0, 0, 0]])
    assert score(logits, labels).tolist() == [pytest.approx(2 / 3), 1.0]
    outputs, targets = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[0.0], [1.0]]])
    assert score(outputs, targets).tolist() == [2.5]


def test_evaluation_is_repeatable():
    results = [evaluate(learner(), Sinusoid(), episodes=50, steps=(0, 3), seed=seed) for seed in (4, 4, 5)]
    assert results[0] == results[1] != results[2]
    assert results[0].keys() == {0, 3}


def test_evaluation_counts_episodes():
    estimate = evaluate(learner(), Sinusoid(), episodes=51, meta_batch=7, steps=(1,))[1]
    assert estimate.count == 51


def test_evaluation_leaves_no_graph_and_no_change():
    algorithm = learner()
    before = {name: p.clone() for name, p in algorithm.named_parameters()}
    evaluate(algorithm, Sinusoid(), episodes=10, steps=(0, 2))
    assert all(torch.equal(p, before[name]) for name, p in algorithm.named_parameters())
    assert all(p.grad is None for p in algorithm.parameters())


def test_diverged_learners_are_counted():
    algorithm = learner()
    algorithm.inner_optimizer = fastmeta.SGD(lr=1e30)
    estimate = evaluate(algorithm, Sinusoid(), episodes=20, steps=(9,))[9]
    assert (estimate.diverged, estimate.mean) == (20, math.inf)
    assert "20 of 20 learners diverged" in str(estimate)


@pytest.mark.parametrize("options", [{"episodes": 0}, {"meta_batch": 0}, {"steps": (-1,)}])
def test_bad_evaluation(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))} must be an integer of at least"):
        evaluate(learner(), Sinusoid(), **options)
