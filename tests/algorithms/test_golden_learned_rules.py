"""Algorithms that learn their inner rule: Meta-SGD, Meta-Curvature, sparse-MAML, the LSTM meta-learner and the learned
optimiser as public implementations have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_algorithms import WAYS, batch_of, case_of, golden_in_every_way
from golden_algorithms import deviation as together
from golden_cases import ALGORITHMS, LOSSES, names
from test_golden_algorithms import check

import fastmeta
from fastmeta.algorithms import Carry
from fastmeta.engine.batch import TaskBatch

COMPILED = {"meta_sgd_classifier_k3", "meta_curvature_mlp_k2", "sparse_maml_k3", "lstm_metalearner_paper_k2"}


def golden_learner(case, **options) -> tuple[Any, dict[str, torch.Tensor]]:
    """The learner of a case, and what it learns beside θ by the case's names."""
    spec = case.spec
    options = {"inner_loss": LOSSES[spec["loss"]], "inner_steps": spec["steps"]} | options
    algorithm = spec["algorithm"]
    if algorithm == "meta_sgd":
        options = {"first_order": spec["first_order"]} | options
        learner = fastmeta.MetaSGD(case.model(), **options)
        learned = {f"alpha/{name}": x for name, x in learner.learned.named().items()}
    elif algorithm == "sparse_maml":
        learner = fastmeta.SparseMAML(case.model(), lr=spec["inner"]["lr"], **options)
        learned = {f"mask/{name}": x for name, x in learner.learned.named().items()}
    elif algorithm == "meta_curvature":
        learner = fastmeta.MetaCurvature(case.model(), lr=spec["inner"]["lr"], **options)
        learned = learner.learned.named()
    elif algorithm == "lstm_metalearner":
        options = {"gates": spec["gate_feedback"]} | options
        learner = fastmeta.LSTMMetaLearner(case.model(), hidden=spec["hidden"], p=spec["preprocess_p"], **options)
        network = learner.learned
        learned = {f"lstm/{name}": p for name, p in network.cell.named_parameters()} | {
            "WF": network.forget_weight, "bF": network.forget_bias,
            "WI": network.input_weight, "bI": network.input_bias,
        }  # fmt: skip
    else:
        assert algorithm == "learned_optimizer"
        options = {"second_order": spec["second_order"]} | options
        learner = fastmeta.LearnedOptimizer(
            case.model(), hidden=spec["hidden"], p=spec["preprocess_k"], eps=spec["preprocess_eps"],
            scale=spec["output_scale"], **options,
        )  # fmt: skip
        network = learner.learned
        learned = {f"linear/{name}": p for name, p in network.linear.named_parameters()}
        for i, cell in enumerate(network.cells):
            learned |= {f"lstm{i}/{name}": p for name, p in cell.named_parameters()}
    assert learned.keys() == case.extra.keys()
    with torch.no_grad():
        for name, x in learned.items():
            x.copy_(case.extra[name].view_as(x))
    return learner, learned


def gradients(learner, learned, case) -> dict[str, torch.Tensor]:
    """Of what `golden_learner` gave, by the case's names and in its shapes."""
    if case.spec["algorithm"] in ("meta_sgd", "sparse_maml"):
        kind = next(iter(learned)).partition("/")[0]
        return {f"{kind}/{name}": g for name, g in learner.learned.named(learner.learned.values.grad).items()}
    return {name: p.grad.view_as(case.extra[name]) for name, p in learned.items()}


@golden_in_every_way("meta_sgd*", "meta_curvature*", "sparse_maml*", "lstm_metalearner*", compiled=COMPILED)
def test_golden(name, way):
    case = case_of(name)
    learner, learned = golden_learner(case, **WAYS[way])
    check(case, learner, batch_of(case), extra=lambda: gradients(learner, learned, case))


def carry_of(case, learner) -> Carry:
    """θ for every task, with its graph, and the states that an unroll of the case starts with."""
    layout = learner.session(TaskBatch(case["support_x"], case["support_y"])).layout
    named = dict(learner.module.named_parameters())
    phi = layout.row(layout.take(named)).expand(case.spec["tasks"], -1)
    states = []
    for i in range(len(case.spec["hidden"])):
        for kind in "hc":
            pieces = case[f"state/{kind}{i}"].split([shape.numel() for shape in layout.shapes], 1)
            row = phi.new_zeros(*phi.shape, pieces[0].shape[2])
            for piece, at in zip(pieces, layout.offsets, strict=True):
                row[:, at : at + piece.shape[1]] = piece
            states.append(row)
    return Carry(phi, tuple(states), 0)


@pytest.mark.parametrize("way", ["eager", "recompute", "chunked", "reference"])
@pytest.mark.parametrize("name", names("learned_optimizer*", ALGORITHMS))
def test_golden_learned_optimizer(name, way):
    case = case_of(name)
    learner, learned = golden_learner(case, **WAYS[way])
    out, carry = learner.unroll(case["support_x"], case["support_y"], carry=carry_of(case, learner))
    out.loss.backward()
    assert abs(out.loss.item() - case["loss"].item()) < 1e-10
    torch.testing.assert_close(out.task_losses.detach(), case["task_losses"], rtol=1e-10, atol=1e-10)
    assert together({n: p.grad for n, p in learner.module.named_parameters()}, case.grad) < 1e-10
    assert together(gradients(learner, learned, case), case.grad_extra) < 1e-10
    layout = learner.session(TaskBatch(case["support_x"], case["support_y"])).layout
    assert together(layout.named(carry.phi), case.adapted) < 1e-10
    assert not carry.phi.requires_grad
    assert carry.steps == case.spec["steps"]


MISTAKES = [
    ("meta_sgd_classifier_k3", {"first_order": True}, 0.4),
    ("meta_sgd_first_order_k3", {"first_order": False}, 1e-2),
    ("meta_curvature_mlp_k2", {"first_order": True}, 0.3),
    ("meta_curvature_conv_k1", {"first_order": True}, 0.5),
    ("sparse_maml_k3", {"first_order": True}, 0.5),
    ("lstm_metalearner_k3", {"gates": "activation"}, 1e-4),
    ("lstm_metalearner_paper_k2", {"gates": "preactivation"}, 1e-4),
    ("lstm_metalearner_k3", {"second_order": True}, 1e-4),
    ("learned_optimizer_k5", {"second_order": True}, 1e-4),
    ("learned_optimizer_second_order_k3", {"second_order": False}, 1e-3),
]


@pytest.mark.parametrize("name, mistake, size", MISTAKES, ids=str)
def test_no_golden_case_passes_under_a_mistake(name, mistake, size):
    case = case_of(name)
    learner, learned = golden_learner(case, backend="torch", **mistake)
    if case.spec["algorithm"] == "learned_optimizer":
        out, _ = learner.unroll(case["support_x"], case["support_y"], carry=carry_of(case, learner))
    else:
        out = learner(*batch_of(case))
    out.loss.backward()
    got = {n: p.grad for n, p in learner.module.named_parameters()} | gradients(learner, learned, case)
    assert together(got, case.grad | case.grad_extra) > size


@pytest.mark.parametrize(
    "name", [n for p in ("meta_sgd*", "meta_curvature*", "sparse*", "lstm*") for n in names(p, ALGORITHMS)]
)
def test_golden_in_float32(name):
    case = case_of(name)
    learner, learned = golden_learner(case, backend="torch")
    learner.float()
    learner(*(x.float() if x.is_floating_point() else x for x in batch_of(case))).loss.backward()
    assert together({n: p.grad.double() for n, p in learner.module.named_parameters()}, case.grad) < 5e-5
    got = {n: g.double() for n, g in gradients(learner, learned, case).items()}
    assert together(got, case.grad_extra) < 5e-5
