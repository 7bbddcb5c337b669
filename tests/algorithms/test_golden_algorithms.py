"""Rates of layers and steps, ANIL and BOIL, multi-step loss: as public libraries have them.

Each algorithm is written here as a user would write it, through the public API alone.
"""

from __future__ import annotations

import functools

import torch
from golden_algorithms import WAYS, batch_of, case_of, golden_in_every_way
from golden_algorithms import deviation as relative
from golden_cases import LOSSES

import fastmeta

COMPILED = {"lslr_tensor_k3", "anil_mlp_k3", "msl_k3_epoch0", "data_gradient_k2"}


ways = functools.partial(golden_in_every_way, compiled=COMPILED)


def check(case, learner, batch, *, extra=None, adapted=True):
    """A meta-step's loss and gradients, and the same by `adapt` and an outer loss of the user's."""
    tolerance = 1e-10
    out = learner(*batch)
    assert abs(out.loss.item() - case["loss"].item()) < tolerance
    torch.testing.assert_close(out.task_losses.detach(), case["task_losses"], rtol=tolerance, atol=tolerance)
    out.loss.backward()
    grads = {name: p.grad for name, p in learner.module.named_parameters()}
    assert relative(grads, case.grad) < tolerance
    if extra is not None:
        assert relative(extra(), case.grad_extra) < tolerance
    if adapted:
        with torch.no_grad():
            phi = learner.adapt(*batch[:2]).parameters()
        want = {name: x for name, x in case.adapted.items() if name in phi}
        assert relative(phi, want) < tolerance
    learner.zero_grad(set_to_none=False)
    if learner.weights(learner.inner_steps) is None:
        learners = learner.adapt(*batch[:2])
        outputs = learners(batch[2])
        losses = [learner.outer_loss(outputs[t], batch[3][t]) for t in range(len(outputs))]
        torch.stack(losses).mean().backward()
        again = {name: p.grad for name, p in learner.module.named_parameters()}
        assert relative(again, case.grad) < tolerance


def common(case, way):
    return {"inner_loss": LOSSES[case.spec["loss"]], "inner_steps": case.spec["steps"], **WAYS[way]}


def rate(case):
    return case.spec["inner"]["lr"]


@ways("lslr*")
def test_rates_of_layers_and_steps(name, way):
    case = case_of(name)
    algorithm = fastmeta.FOMAML if case.spec["first_order"] else fastmeta.MAML
    rates = fastmeta.PerLayerPerStep(0.01, by=case.spec["per"])
    learner = algorithm(case.model(), inner_optimizer=fastmeta.SGD(lr=rates), **common(case, way))
    with torch.no_grad():
        rates.values.copy_(torch.stack([case.extra[f"alpha/{key}"] for key in rates.names], 1))

    def extra():
        return {f"alpha/{key}": rates.values.grad[:, i] for i, key in enumerate(rates.names)}

    check(case, learner, batch_of(case), extra=extra)


@ways("anil*", "boil*")
def test_parameters_that_all_tasks_share(name, way):
    case = case_of(name)

    algorithm = {"anil": fastmeta.ANIL, "boil": fastmeta.BOIL}[case.spec["algorithm"]]
    learner = algorithm(case.model(), inner_optimizer=fastmeta.SGD(lr=rate(case)), **common(case, way))
    check(case, learner, batch_of(case))
    assert set(learner.adapt(*batch_of(case)[:2]).parameters()) == set(case.spec["adapted"])


@ways("msl*")
def test_query_losses_of_every_step(name, way):
    case = case_of(name)
    learner = fastmeta.MAMLPlusPlus(
        case.model(), lr=rate(case), per_step_rates=False, multi_step_epochs=case.spec["msl_epochs"],
        **common(case, way),
    )  # fmt: skip
    learner.epoch = case.spec["epoch"]
    check(case, learner, batch_of(case))


@ways("data_gradient*")
def test_gradients_of_the_support_set(name, way):
    case = case_of(name)
    learner = fastmeta.MAML(case.model(), inner_optimizer=fastmeta.SGD(lr=rate(case)), **common(case, way))
    batch = batch_of(case)
    for x in batch[:2]:
        x.requires_grad_()
    learner(*batch).loss.backward()
    got = {"support_x": batch[0].grad, "support_y": batch[1].grad}
    assert relative(got, case.grad_extra) < 1e-10
    assert relative({n: p.grad for n, p in learner.module.named_parameters()}, case.grad) < 1e-10
    assert batch[2].grad is None


def test_no_case_passes_where_the_hessian_is_dropped():
    """Each has teeth: the first-order gradient of the same algorithm is far away."""
    first = functools.partial(fastmeta.FOMAML, backend="torch")
    for name in ("anil_mlp_k3", "data_gradient_k2", "msl_k3_epoch0"):
        case = case_of(name)
        learner = first(
            case.model(), inner_optimizer=fastmeta.SGD(lr=rate(case)), inner_loss=LOSSES[case.spec["loss"]],
            inner_steps=case.spec["steps"],
        )  # fmt: skip
        learner(*batch_of(case)).loss.backward()
        assert relative({n: p.grad for n, p in learner.module.named_parameters()}, case.grad) > 1e-2
