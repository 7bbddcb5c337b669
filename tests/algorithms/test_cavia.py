"""CAVIA and latent codes: public implementations' meta-gradients, what may be named, and what stays out."""

import functools

import pytest
import torch
import torch.nn.functional as F
from golden_algorithms import WAYS, batch_of, case_of, check_case, golden_in_every_way
from golden_cases import LOSSES
from interface import check_as_reference
from meta_steps import regression
from torch import nn

import fastmeta
from fastmeta.models import ContextMLP, FilmConv4, ModulatedSiren

COMPILED = {"cavia_k3", "modulated_siren_k3"}


def perceptron(case):
    (_, features, _), *_, (_, _, outputs) = (layer for layer in case.spec["model"] if layer[0] == "Linear")
    hidden = [layer[2] for layer in case.spec["model"][:-1] if layer[0] == "Linear"]
    count = case.spec["context"]
    model = ContextMLP(features - count, outputs, context=count, hidden=hidden)
    return model, {f"layers.{name}": name for name in case.params}


def both(parts):
    """Names of weights and biases of layers, ours and theirs."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in parts.items() for kind in ("weight", "bias")}


def film(case):
    filters, context = case.spec["filters"], case.spec["context"]
    model = FilmConv4(4, channels=filters, context=context, film_after=(3,), shape=(3, 28, 28))
    parts = {f"convs.{i}": f"conv{i + 1}" for i in range(4)} | {f"norms.{i}": f"bn{i + 1}" for i in range(4)}
    parts |= {"films.3.map": "film3", "head": "fc1"}
    return model, both(parts)


def siren(case):
    spec = case.spec
    hidden = spec["layers"] - 1
    model = ModulatedSiren(width=spec["hidden"], hidden=hidden, latent=spec["latent"], frequency=spec["w0"])
    parts = {f"layers.{i}": f"net.{i}.linear" for i in range(hidden)}
    parts |= {"last": "last_layer.linear", "modulation": "modulation_net.net"}
    return model, both(parts)


NETWORKS = {"cavia": perceptron, "cavia_film": film, "modulated_siren": siren}


def learner_of(case, *, dtype=torch.float64, **options):
    """The case's learner, and the names of its parameters there."""
    model, names = NETWORKS[case.spec["algorithm"]](case)
    model.to(dtype)
    context = "latent" if "latent" in case.spec else "context"
    with torch.no_grad():
        for ours, theirs in names.items():
            model.get_parameter(ours).copy_(case.params[theirs])
        model.get_parameter(context).normal_()  # its value must not matter
        if context == "latent":
            model.last.bias.add_(0.5)  # which COIN++ adds to the outputs
    learner = fastmeta.CAVIA(
        model, context=context, inner_loss=LOSSES[case.spec["loss"]], inner_steps=case.spec["steps"],
        inner_optimizer=fastmeta.SGD(lr=case.spec["inner"]["lr"]), **options,
    )  # fmt: skip
    return learner, names


@golden_in_every_way("cavia*", "modulated_siren*", compiled=COMPILED)
def test_as_public_implementations(name, way):
    case = case_of(name)
    learner, names = learner_of(case, **WAYS[way])
    check_case(case, learner, batch_of(case), names=names)
    assert learner.module.get_parameter(learner.context).grad is None


@pytest.mark.parametrize("name", ["cavia_k3", "cavia_film_conv_k2", "modulated_siren_k3"])
def test_in_float32(name):
    case = case_of(name)
    learner, names = learner_of(case, dtype=torch.float32, backend="torch")
    batch = [x.float() if x.is_floating_point() else x for x in batch_of(case)]
    check_case(case, learner, batch, names=names, tolerance=5e-5)


@pytest.mark.parametrize("name", ["cavia_k3", "cavia_sinusoid_k1", "modulated_siren_k3"])
def test_without_the_mixed_derivatives_it_is_another_gradient(name):
    case = case_of(name)
    learner, names = learner_of(case, first_order=True)
    with pytest.raises(AssertionError, match="gradient"):
        check_case(case, learner, batch_of(case), names=names, tolerance=2e-3)


def small(**options):
    torch.manual_seed(0)
    model = ContextMLP(2, 1, context=3, hidden=(5,)).double()
    options = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.3), "inner_steps": 2} | options
    return fastmeta.CAVIA(model, **options)


@pytest.mark.parametrize("lr", [lambda: fastmeta.PerParameter(0.2), lambda: fastmeta.PerLayerPerStep(0.2)])
def test_learned_rates_are_the_contexts(lr):
    learner = small(inner_optimizer=fastmeta.SGD(lr=lr()))
    check_as_reference(learner, regression())
    assert learner.learned.values.shape in {(1, 4), (2, 1)}  # a row of three numbers, padded
    assert learner.learned.values.grad.norm() > 0


def test_scales_and_shifts():
    torch.manual_seed(0)
    model = ModulatedSiren(width=6, hidden=2, latent=3, outputs=1, frequency=3.0, scale=True).double()
    learner = fastmeta.CAVIA(
        model, context="latent", inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.5), inner_steps=2
    )
    check_as_reference(learner, regression())
    x = torch.rand(5, 2, dtype=torch.float64)
    with torch.no_grad():
        model.latent.normal_()
        scales, shifts = model.modulation(model.latent).view(2, 2, 6)
        h = x
        for layer, scale, shift in zip(model.layers, scales, shifts, strict=True):
            h = torch.sin(3.0 * ((1 + scale) * layer(h) + shift))
        torch.testing.assert_close(model(x), model.last(h))


def test_what_it_costs_a_task():
    """Nothing of what tasks share has a gradient in an inner step, and fast weights are the context alone."""
    learner, batch = small(backend="torch"), regression()
    learner(*batch)
    plan = learner._plans.latest.engine.loop.objective.plan
    first, *rest = [node for node in plan.nodes if node.op.name == "linear"]
    assert first.moves == (True, False, False)  # by the context behind the input
    assert all(node.moves == (True, False, False) for node in rest)
    assert learner.adapt(*batch[:2]).parameters().keys() == {"context"}
    assert "no kernel" not in learner.explain()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = ContextMLP(2, 1), ContextMLP(2, 1)

    def forward(self, x):
        return self.one(x) + self.two(x)


def test_the_context_is_named():
    cavia = functools.partial(fastmeta.CAVIA, inner_loss=F.mse_loss)
    assert cavia(nn.Sequential(ContextMLP(2, 1))).context == "0.context"
    assert cavia(Twice(), context="two.context").context == "two.context"
    with pytest.raises(ValueError, match=r"'context' must name one parameter of Twice, got several: \['one.context'"):
        cavia(Twice())
    with pytest.raises(ValueError, match=r"context='latent' must name one parameter of ContextMLP, got none; its"):
        cavia(ContextMLP(2, 1), context="latent")
    with pytest.raises(TypeError, match="context must be the name of a parameter of the model, got 3"):
        cavia(ContextMLP(2, 1), context=3)
    model = ContextMLP(2, 1)
    model.context.requires_grad_(False)
    with pytest.raises(ValueError, match=r"moves 'context', which is frozen; call requires_grad_\(True\) on it"):
        cavia(model)
    with pytest.raises(ValueError, match=r"film_after must name at least one of the blocks 1 to 4, got \(5,\)"):
        FilmConv4(film_after=(5,))
