"""The ladder: what cannot run on all tasks at once runs task by task, and says why."""

from __future__ import annotations

import pytest
from interface import learner_of
from meta_steps import assert_same_step, regression, with_backend

import fastmeta
from fastmeta.engine.adjoint import Implicit
from fastmeta.program.program import Program
from fastmeta.program.trace import Untraceable

pytestmark = pytest.mark.proof


@pytest.fixture
def untraceable(monkeypatch):
    def plan(*_, **__):
        raise Untraceable("it calls torch.autograd.grad")

    monkeypatch.setattr(Program, "plan", plan)


@pytest.mark.usefixtures("untraceable")
def test_what_cannot_be_traced_runs_task_by_task():
    learner = learner_of()
    batch = regression()
    assert_same_step(learner, batch, with_backend(learner, "reference"), 1e-10)
    assert "task by task under plain autograd: it calls torch.autograd.grad" in learner.explain()
    learners = learner.adapt(*regression()[:2])
    assert learners(regression().query_x).shape == (3, 5, 1)


@pytest.mark.usefixtures("untraceable")
def test_options_that_the_last_rung_does_not_have():
    batch = regression()
    with pytest.raises(RuntimeError, match=r'backend="triton".*\(it calls torch.autograd.grad\)'):
        learner_of(backend="triton")(*batch)
    with pytest.raises(ValueError, match=r"precision='bfloat16' needs a program.*it calls torch.autograd.grad"):
        learner_of(precision="bfloat16")(*batch)

    class Implicitly(fastmeta.MAML):
        adjoint = Implicit(strength=1.0)

    with pytest.raises(ValueError, match=r"adjoint=.*needs a program.*it calls torch.autograd.grad"):
        learner_of(Implicitly)(*batch)
    for name in ("compile", "cuda_graph"):
        learner = learner_of(**{name: True})
        with pytest.warns(UserWarning, match=f"{name}=True does nothing here.*it calls torch.autograd.grad"):
            learner(*batch)
        for tasks in (2, 3):  # warnings are errors: nothing is said twice
            learner(*(x[:tasks] for x in batch))
