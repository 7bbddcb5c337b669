"""Peers' meta-steps as CUDA graphs: recorded once, replayed whole, so that no launch waits for Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .problem import MetaStep, Problem, Unsupported

WARM_UP_CALLS = 3
"""Before a capture, on a stream of its own: libraries make their handles and workspaces, kernels compile (PyTorch,
"CUDA semantics", CUDA graphs, takes three)."""


def captured(peer: Callable[[Problem], MetaStep]) -> Callable[[Problem], MetaStep]:
    """A peer whose meta-step is captured. Data and gradient stay where they were at the capture."""

    def prepare(problem: Problem) -> MetaStep:
        if problem.device != "cuda":
            raise Unsupported("CUDA graphs need --device cuda")
        step = peer(problem)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            gradient = step()

        def replay() -> Mapping[str, Any]:
            graph.replay()
            return gradient

        return replay

    return prepare
