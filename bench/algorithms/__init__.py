"""Algorithms that peers have each in a form of its own."""

from __future__ import annotations

from bench.names import OTHERS
from bench.problem import Problem
from bench.workloads import Workload

from .anil import ANIL
from .base import Algorithm, Prepare
from .cavia import CAVIA
from .imaml import IMAML
from .maml_plus_plus import MAML_PLUS_PLUS
from .meta_sgd import META_SGD
from .protonet import PROTONET, PROTONET_SEPARATE
from .siren_latent import SIREN_LATENT

_ALL = (META_SGD, ANIL, MAML_PLUS_PLUS, IMAML, CAVIA, SIREN_LATENT, PROTONET, PROTONET_SEPARATE)
REGISTRY: dict[str, Algorithm] = {algorithm.name: algorithm for algorithm in _ALL}
assert tuple(REGISTRY) == OTHERS, "names.py lists them for the command line"

__all__ = ["REGISTRY", "Algorithm", "Prepare", "problem_of", "sized"]


def problem_of(
    workload: Workload, *, algorithm: str = "maml", device: str = "cpu", precision: str = "float32"
) -> Problem:
    """A workload with the network that the algorithm has."""
    if algorithm not in REGISTRY:
        return Problem.of(workload, algorithm=algorithm, device=device, precision=precision)
    batch = type(workload.batch())(*(x.to(device) for x in workload.batch()))
    return Problem(workload, REGISTRY[algorithm].model(workload).to(device), batch, algorithm, device, precision)


def sized(workload: Workload, algorithm: str) -> Workload:
    """The workload as the algorithm has it."""
    return REGISTRY[algorithm].sized(workload) if algorithm in REGISTRY else workload
