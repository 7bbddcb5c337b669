"""Parameters that all tasks share and no inner step moves: ANIL, BOIL and all between."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from interface import (
    WAYS,
    check_as_reference,
    conv,
    every_way,
    grads_of,
    learner_of,
    net,
    sharing,
)
from meta_steps import classification, regression, relative
from torch import nn

import fastmeta


@every_way
@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML])
@pytest.mark.parametrize("shared", [("0",), ("2",), ("4",), ("0", "2"), ("2", "4"), ("0", "4"), ("0.weight", "2.bias")])
def test_shared_parameters(algorithm, shared, way):
    learner = learner_of(sharing(*shared, algorithm=algorithm), **WAYS[way])
    check_as_reference(learner, regression(tasks=4))


@pytest.mark.parametrize("bn_statistics", ["batch", "support"])
@pytest.mark.parametrize("shared", [("0", "1", "4", "5"), ("8",), ("1", "5"), ("0.bias", "4.weight"), ("4",)])
def test_shared_parameters_of_convolutions(shared, bn_statistics):
    batch = classification(1, 4, 4, tasks=3, support=6, query=5)
    learner = learner_of(
        sharing(*shared), conv(), inner_loss=F.cross_entropy, bn_statistics=bn_statistics, inner_steps=2,
    )  # fmt: skip
    check_as_reference(learner, batch, loss=F.cross_entropy)


def test_shared_parameters_of_opaque_ops():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(3))
            self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x):
            return self.last(torch.logsumexp(torch.stack([self.first(x), self.scale * x.sum(-1, keepdim=True)]), 0))

    for shared in (("scale",), ("first",), ("last", "scale")):
        check_as_reference(learner_of(sharing(*shared), Odd().double()), regression())


def test_sharing_nothing_is_maml_to_the_bit_and_sharing_all_an_error():
    batch, model = regression(), net()
    assert (
        relative(grads_of(learner_of(sharing("none"), model), batch), grads_of(learner_of(model=model), batch)) == 0.0
    )
    with pytest.raises(ValueError, match=r"adapts\(\) is true of none of the trainable parameters"):
        learner_of(sharing("0", "2", "4"), model)(*batch)
    with pytest.raises(ValueError, match=r"Reptile trains what its inner loop moves, .* requires_grad_\(False\)"):
        learner_of(sharing("0", algorithm=fastmeta.Reptile), model)(*batch)


def test_what_the_inner_loss_does_not_depend_on_is_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.used(x)

    learner = learner_of(sharing("used"), Two().double())
    with pytest.raises(ValueError, match="inner_loss depends on no parameter that the inner loop moves"):
        learner(*regression())


def test_adapts_may_change_between_calls():
    class Switched(fastmeta.MAML):
        head_only = False

        def adapts(self, name):
            return not self.head_only or name.startswith("4")

    learner, batch = learner_of(Switched), regression()
    both = []
    for learner.head_only in (False, True):
        both.append(check_as_reference(learner, batch))
    assert relative(both[0], both[1]) > 1e-3
