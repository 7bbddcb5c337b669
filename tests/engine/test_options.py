"""Options of a learner: what is legal, and what a message says of what is not."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from fastmeta.engine.adjoint import Displacement, Implicit
from fastmeta.engine.prior import Proximal


def learner_of(*, module, **options):
    return fastmeta.MAML(module, **options)


OPTIONS = {
    "module": nn.Linear(2, 2),
    "inner_loss": F.mse_loss,
    "outer_loss": None,
    "inner_optimizer": fastmeta.SGD(lr=0.1),
    "inner_steps": 1,
    "inner_batch_size": None,
    "backend": "auto",
    "compile": False,
    "cuda_graph": False,
    "memory": "save",
    "task_chunk": None,
    "bn_statistics": "batch",
    "precision": "float32",
}


def test_legal_options_pass():
    learner_of(**OPTIONS)
    changes = {
        "outer_loss": nn.MSELoss(),
        "inner_optimizer": fastmeta.Adam(lr=0.1),
        "inner_steps": 0,
        "inner_batch_size": 1,
    }
    changes |= {"backend": "reference", "compile": True, "cuda_graph": True, "memory": "recompute"}
    changes |= {"task_chunk": 1}
    learner_of(**(OPTIONS | changes | {"bn_statistics": "support", "precision": "tf32"}))


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"module": F.relu}, TypeError, r"model must be a torch\.nn\.Module, got function"),
        (
            {"module": nn.Tanh()},
            ValueError,
            r"model must have a trainable parameter, got none; set requires_grad",
        ),
        (
            {"module": nn.Linear(1, 1).requires_grad_(False)},
            ValueError,
            "model must have a trainable parameter",
        ),
        ({"module": nn.LazyLinear(2)}, ValueError, r"parameters without a shape \('weight'\); run it once"),
        (
            {"inner_loss": "mse"},
            TypeError,
            r"inner_loss must be callable as \(outputs, targets\) .* got 'mse'",
        ),
        ({"inner_loss": None}, TypeError, r"inner_loss must be callable"),
        ({"outer_loss": 3}, TypeError, r"outer_loss must be callable .* got 3"),
        ({"outer_loss": nn.MSELoss}, TypeError, r"outer_loss must be an instance, .* pass MSELoss\(\)"),
        (
            {"inner_optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)},
            TypeError,
            r"inner_optimizer must be fastmeta\.SGD\(lr=\.\.\.\), .* or .* got torch\.optim\.sgd\.SGD; torch",
        ),
        ({"inner_optimizer": fastmeta.SGD}, TypeError, r"inner_optimizer must be fastmeta\.SGD\(lr=\.\.\.\)"),
        ({"inner_steps": -1}, ValueError, r"inner_steps must be an integer of at least 0, got -1"),
        ({"inner_steps": 1.0}, TypeError, r"inner_steps must be an integer of at least 0, got 1\.0"),
        ({"inner_steps": True}, TypeError, r"inner_steps must be an integer .* got True"),
        ({"inner_steps": None}, TypeError, r"inner_steps must be an integer .* got None"),
        (
            {"inner_batch_size": 0},
            ValueError,
            r"inner_batch_size .* at least 1, or None \(all support .* got 0",
        ),
        ({"task_chunk": 0}, ValueError, r"task_chunk must be an integer of at least 1, or None .* got 0"),
        ({"task_chunk": "4"}, TypeError, r"task_chunk must be an integer .* got '4'"),
        (
            {"backend": "cuda"},
            ValueError,
            r"backend must be one of 'auto', 'torch', 'triton', 'reference', got 'cuda'",
        ),
        ({"memory": "low"}, ValueError, r"memory must be one of 'save', 'recompute', got 'low'"),
        ({"bn_statistics": None}, ValueError, r"bn_statistics must be one of 'batch', 'support', got None"),
        (
            {"precision": "fp16"},
            ValueError,
            r"precision must be one of 'float32', 'tf32', 'bfloat16', got 'fp16'",
        ),
        ({"compile": 1}, TypeError, r"compile must be True or False, got 1"),
        ({"cuda_graph": None}, TypeError, r"cuda_graph must be True or False, got None"),
    ],
)
def test_bad_options(changes, error, message):
    with pytest.raises(error, match=message):
        learner_of(**(OPTIONS | changes))


@pytest.mark.parametrize(
    "name, value, error, message",
    [
        ("inner_steps", -3, ValueError, r"inner_steps must be an integer of at least 0, got -3"),
        ("inner_loss", nn.MSELoss, TypeError, r"inner_loss must be an instance, .* pass MSELoss\(\)"),
        ("compile_step", 1, TypeError, r"compile must be True or False, got 1"),
        ("backend", "cuda", ValueError, r"backend must be one of"),
        (
            "inner_clip_norm",
            0.0,
            ValueError,
            r"inner_clip_norm must be a positive number, or None \(no clipping\), got 0",
        ),
        ("inner_optimizer", None, TypeError, r"inner_optimizer must be fastmeta\.SGD"),
    ],
)
def test_options_set_later_are_checked_and_the_old_ones_stay(name, value, error, message):
    learner = learner_of(**OPTIONS)
    before = getattr(learner, name)
    with pytest.raises(error, match=message):
        setattr(learner, name, value)
    assert getattr(learner, name) is before


def test_options_can_be_read_and_set_by_name():
    learner = learner_of(**OPTIONS)
    learner.inner_steps, learner.memory, learner.compile_step = 4, "recompute", True
    learner.inner_optimizer = fastmeta.Adam(lr=0.1)
    options = learner.options
    assert (options.inner_steps, options.memory, options.compile) == (4, "recompute", True)
    assert learner.inner_optimizer == fastmeta.Adam(lr=0.1)
    assert learner.outer_loss is F.mse_loss
    copied = copy.deepcopy(learner)
    copied.inner_steps = 1
    assert (learner.inner_steps, copied.inner_steps) == (4, 1)


def test_a_loss_that_is_a_module_is_a_submodule_as_long_as_it_is_an_option():
    weighted = nn.CrossEntropyLoss(weight=torch.ones(2))
    learner = learner_of(**OPTIONS | {"inner_loss": weighted})
    assert learner.inner_loss is weighted
    assert "inner_loss.weight" in learner.state_dict()
    learner.inner_loss = F.cross_entropy
    learner.outer_loss = F.cross_entropy
    assert not any("loss" in name for name in learner.state_dict())
    learner.outer_loss = weighted
    assert learner.outer_loss is weighted
    assert "outer_loss.weight" in learner.state_dict()


def test_what_does_not_go_together_is_refused():
    class Wrong(fastmeta.MAML):
        adjoint = Displacement()

    with pytest.raises(ValueError, match=r"PerParameter has no gradient under Displacement\(\).* use fixed step sizes"):
        Wrong(nn.Linear(1, 1), inner_optimizer=fastmeta.SGD(lr=fastmeta.PerParameter(0.1)))
    with pytest.raises(ValueError, match="PerParameter has no gradient under Displacement"):
        fastmeta.Reptile(nn.Linear(1, 1), inner_optimizer=fastmeta.SGD(lr=fastmeta.PerParameter(0.1)))

    class OfBatches(fastmeta.MAML):
        adjoint = Implicit(1.0)

    with pytest.raises(ValueError, match="inner_batch_size must be None"):
        OfBatches(nn.Linear(1, 1), inner_batch_size=2)
    with pytest.raises(ValueError, match=r"Implicit\.strength must be positive, got 0"):
        Implicit(0.0)
    with pytest.raises(ValueError, match=r"Implicit\.steps must be an integer of at least 1, got 0"):
        Implicit(1.0, 0)
    with pytest.raises(ValueError, match=r"Proximal\.strength"):
        Proximal(-1.0)
    learner = learner_of(**OPTIONS)
    learner.prior = 3
    with pytest.raises(TypeError, match=r"prior must be one of fastmeta\.engine\.prior"):
        learner.options  # noqa: B018
    learner = learner_of(**OPTIONS)
    learner.adjoint = "exact"
    with pytest.raises(TypeError, match=r"adjoint must be one of fastmeta\.engine\.adjoint"):
        learner.options  # noqa: B018
