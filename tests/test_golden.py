"""The torch backend against the meta-gradients of public libraries, in every mode it runs in (float64)."""

from __future__ import annotations

import pytest
from golden_cases import LOSSES, cases, learner_of
from meta_steps import assert_close, relative


def tolerance_of(case):
    return 1e-8 if case.spec["inner"]["optimizer"] == "adam" else 1e-10


def grads_of(learner):
    grads = {name: p.grad for name, p in learner.module.named_parameters()}
    learner.zero_grad()
    return grads


def check_step(case, learner):
    tolerance = tolerance_of(case)
    out = learner(case["support_x"], case["support_y"], case["query_x"], case["query_y"])
    assert out.finite.all()
    assert relative(out.task_losses, case["task_losses"]) < tolerance
    assert relative(out.loss, case["task_losses"].mean()) < tolerance
    out.loss.backward()
    assert_close(grads_of(learner), case.grad, tolerance)


def check_learners(case, learner):
    tolerance = tolerance_of(case)
    learners = learner.adapt(case["support_x"], case["support_y"])
    phi = learners.parameters()
    for name, expected in case.adapted.items():
        assert relative(phi[name], expected) < tolerance, name
        # what the inner loop moved, not the values it started from
        theta = learner.module.get_parameter(name)
        if (expected - theta).norm() > 1e-3 * theta.norm():
            assert relative(phi[name] - theta, expected - theta) < 1e2 * tolerance, name
    outputs = learners(case["query_x"])
    losses = [LOSSES[case.spec["loss"]](y, target) for y, target in zip(outputs, case["query_y"], strict=True)]
    loss = sum(losses) / len(losses)
    assert relative(loss, case["task_losses"].mean()) < tolerance
    if case.spec["algorithm"] == "reptile":  # whose gradient is no derivative of this loss
        return
    loss.backward()
    assert_close(grads_of(learner), case.grad, tolerance)


@pytest.mark.parametrize(
    "options",
    [{}, {"memory": "recompute"}, {"task_chunk": 1}],
    ids=["whole", "recompute", "one-task-at-a-time"],
)
def test_every_case(golden, options):
    learner = learner_of(golden, **options)
    check_step(golden, learner)
    check_learners(golden, learner)


@pytest.fixture(scope="module")
def compiled_sinusoid():
    """A case and its learner with its code compiled: most of the time is the compiler's."""
    (case,) = cases("sinusoid_maml_k1")
    learner = learner_of(case, compile=True)
    learner(case["support_x"], case["support_y"], case["query_x"], case["query_y"])
    return case, learner


def test_compiled_sinusoid(compiled_sinusoid):
    check_step(*compiled_sinusoid)


@pytest.mark.golden("[at]*_maml_k*")  # Adam, and a tanh MLP
def test_compiled(golden):
    check_step(golden, learner_of(golden, compile=True))
