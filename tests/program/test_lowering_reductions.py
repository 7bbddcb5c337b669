"""Rules of variances and norms against PyTorch's own functions, in all four sweeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_harness import randn
from rules import Sketch, check_rule

from fastmeta.program.lowering import NotKnown, reductions

T = 2
CALLS = {
    "var": ((), {}),
    "var, population": ((False,), {}),
    "var of rows": ((-1,), {}),
    "var, all by place": ((1, False, True), {}),
    "var, by name": ((), {"dim": (0, 1), "correction": 0, "keepdim": True}),
    "var, unbiased": ((0,), {"unbiased": False}),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("function", ["var", "std", "var_mean", "std_mean"])
def test_variances(function, name):
    args, options = CALLS[name]
    rule, plain = getattr(reductions, function), getattr(torch, function)
    check_rule(lambda to, x: rule(to, x, *args, **options), lambda x: plain(x, *args, **options), randn(T, 3, 4))


NORMS = {
    "norm": (reductions.norm, torch.norm, {}),
    "norm of rows": (reductions.norm, torch.norm, {"p": 2, "dim": -1, "keepdim": True}),
    "vector_norm": (reductions.vector_norm, torch.linalg.vector_norm, {}),
    "vector_norm of columns": (reductions.vector_norm, torch.linalg.vector_norm, {"dim": (0,), "ord": 2.0}),
    "linalg.norm": (reductions.linalg_norm, torch.linalg.norm, {}),
    "linalg.norm of rows": (reductions.linalg_norm, torch.linalg.norm, {"dim": 1, "ord": 2}),
    "linalg.norm, Frobenius": (reductions.linalg_norm, torch.linalg.norm, {"ord": "fro"}),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name):
    rule, plain, options = NORMS[name]
    check_rule(lambda to, x: rule(to, x, **options), lambda x: plain(x, **options), randn(T, 3, 4))


def test_what_norms_are_for():
    x, y = randn(T, 3, 4), randn(T, 3, 4)
    check_rule(reductions.normalize, F.normalize, x)
    check_rule(lambda to, x: reductions.normalize(to, x, dim=0), lambda x: F.normalize(x, dim=0), x)
    check_rule(reductions.pairwise_distance, F.pairwise_distance, x, y)


VALUE, NUMBER = torch.zeros(3, 4), torch.zeros(())
REFUSED = {
    "p=1": lambda to, v, n: reductions.norm(to, v, 1),
    "ord=inf": lambda to, v, n: reductions.vector_norm(to, v, torch.inf),
    "ord=2 and dim=None": lambda to, v, n: reductions.linalg_norm(to, v, 2),
    "a norm of torch.float32 as torch.float64": lambda to, v, n: reductions.norm(to, v, dtype=torch.float64),
    "without dimensions": lambda to, v, n: reductions.var(to, n),
    "no more samples": lambda to, v, n: reductions.std(to, v, 0, correction=3),
    "unusual arguments": lambda to, v, n: reductions.var(to, v, True, 1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_calls_that_are_not_known(reason):
    to = Sketch()
    with pytest.raises(NotKnown, match=reason.replace(".", r"\.")):
        REFUSED[reason](to, *(to.slot(x) for x in (VALUE, NUMBER)))
