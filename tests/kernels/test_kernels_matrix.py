"""Every algorithm with every inner rule on each family of Triton kernels, against truth; learners' updates too."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from convolutions import batch_of, conv, net
from kernel_runs import assert_as_good_as_torch, needs_kernels, results
from meta_steps import mlp, regression
from registry import ALGORITHMS, OWN, PAIRS, RULES, rule_of
from torch import nn

pytestmark = needs_kernels


def block():
    """Without a bias in front of the norm: its gradient is rounding, which Adam would make a step of full size."""
    return net(*conv(2, 5, pool=nn.MaxPool2d(2), bias=False), image=(2, 6, 5))


FAMILIES = {
    "mlp_loop": (lambda: mlp(3, 9, 2), lambda: regression(tasks=2, features=3, outputs=2), F.mse_loss),
    "linear": (lambda: mlp(3, 9, 2), lambda: regression(tasks=2, features=3, outputs=2), F.mse_loss),
    "conv_block": (block, lambda: batch_of(2, 6, 5), F.cross_entropy),
}


@pytest.fixture
def kernels_of(request, monkeypatch):
    """A family; small perceptrons are sent to the kernels of single layers where those are meant."""
    from fastmeta.engine.backends import triton as triton_backend

    if request.param == "linear":
        monkeypatch.setattr(triton_backend, "fits_loop", lambda *_: False)
    return FAMILIES[request.param]


@pytest.mark.usefixtures("poison", "wide_tiles")
@pytest.mark.parametrize("kernels_of", FAMILIES, indirect=True)
@pytest.mark.parametrize("algorithm, rule", PAIRS)
def test_a_meta_step_and_learners(kernels_of, algorithm, rule):
    """Two steps, so that a rule's state counts. Learners do not depend on how their meta-gradient is taken."""
    make, batch, loss = kernels_of
    options = {"algorithm": ALGORITHMS[algorithm].learner, "inner_optimizer": rule_of(rule), "inner_loss": loss}
    if ALGORITHMS[algorithm].kernels and (rule == OWN or RULES[rule].kernels):
        assert_as_good_as_torch(make(), batch(), update=algorithm == "maml", **options)
        return
    with pytest.raises(RuntimeError, match=r'backend="triton": .*Use backend="auto" or "torch"'):
        results(make(), batch(), "triton", None, **options)
