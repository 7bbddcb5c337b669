"""Every algorithm and every inner rule, a line each.

A new one inherits the tests of algorithms/test_algorithms.py (all ways of running it on the torch backend and the
reference, compiled code, float32) and of kernels/test_kernels_matrix.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

import fastmeta
from fastmeta.algorithms.base import MetaLearner


class Algorithm(NamedTuple):
    """How to make a learner of `(model, **options)`, and what is known of its meta-gradient.

    derivative: it is the derivative of the query loss, exact or to first order; Reptile's is a displacement.
    kernels: Triton kernels run it; of what they do not, the torch backend must be taken and said why.
    own_rule: it brings its inner rule, and takes none.
    """

    make: Callable[..., MetaLearner]
    derivative: bool = True
    kernels: bool = True
    own_rule: bool = False

    def learner(self, model: nn.Module, **options: Any) -> MetaLearner:
        """A learner; what it draws of its own to start with is the same each time."""
        if self.own_rule:
            options.pop("inner_optimizer", None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make(model, **options)


class Rule(NamedTuple):
    """An inner rule; `kernels` as above. Each has a step size at which a few steps on a small network stay tame."""

    make: Callable[[], Any]
    kernels: bool = True


ALGORITHMS = {
    "maml": Algorithm(fastmeta.MAML),
    "fomaml": Algorithm(fastmeta.FOMAML),
    "reptile": Algorithm(fastmeta.Reptile, derivative=False),
    "anil": Algorithm(fastmeta.ANIL, kernels=False),
    "boil": Algorithm(fastmeta.BOIL, kernels=False),
    "imaml": Algorithm(fastmeta.IMAML, kernels=False),
    "meta-sgd": Algorithm(partial(fastmeta.MetaSGD, lr=(0.0, 0.3)), own_rule=True),
    "sparse-maml": Algorithm(partial(fastmeta.SparseMAML, lr=0.3), own_rule=True),
    "meta-curvature": Algorithm(partial(fastmeta.MetaCurvature, lr=0.2), kernels=False, own_rule=True),
    "maml++": Algorithm(partial(fastmeta.MAMLPlusPlus, lr=0.2), kernels=False, own_rule=True),
    "lstm": Algorithm(partial(fastmeta.LSTMMetaLearner, hidden=4), kernels=False, own_rule=True),
}
RULES = {
    "sgd": Rule(lambda: fastmeta.SGD(lr=0.3)),
    "nesterov": Rule(lambda: fastmeta.SGD(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.02)),
    "adam": Rule(lambda: fastmeta.Adam(lr=0.05)),
}
OWN = "its own"
PAIRS = [(name, rule) for name, algorithm in ALGORITHMS.items() for rule in ((OWN,) if algorithm.own_rule else RULES)]


def rule_of(name: str) -> Any:
    """The rule of a pair; None where the algorithm brings it."""
    return None if name == OWN else RULES[name].make()


MODES = {
    "eager": {"backend": "torch"},
    "recompute": {"backend": "torch", "memory": "recompute"},
    "chunked": {"backend": "torch", "task_chunk": 2},
    "reference": {"backend": "reference"},
}
"""Ways of running a meta-step that differ in nothing but roundings."""


def make(algorithm: str, rule: str, model: nn.Module, **options: Any) -> MetaLearner:
    """A learner by the names of its algorithm and of its inner rule."""
    return ALGORITHMS[algorithm].learner(model, **({"inner_optimizer": rule_of(rule)} | options))
