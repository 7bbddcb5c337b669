"""Which backend runs a program, and why."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastmeta.engine.meta_step import Engine

from .convnet import Graph, convnet, has_convolutions
from .perceptron import Limits, NotTaken, perceptron


class Choice(NamedTuple):
    """A backend and why; the graph is what Triton kernels run."""

    backend: str
    why: str
    graph: Graph | None = None


def check_engine(engine: Engine, start: str) -> None:
    """Raises NotTaken where no kernel has what the meta-step asks for, whatever its program."""
    loop, inner = engine.loop, engine.loop.objective
    rule = loop.rule.in_kernels()
    if isinstance(rule, str):
        raise NotTaken(rule)
    if engine.adjoint.kernels is None:
        raise NotTaken(f"no kernel has the adjoint {engine.adjoint}")
    if loop.prior is not None:
        raise NotTaken(f"no kernel adds the prior {loop.prior} to the support loss")
    if loop.clip_norm is not None:
        raise NotTaken("no kernel clips inner gradients (inner_clip_norm)")
    if loop.first or start == "rows":
        raise NotTaken("tasks start at fast weights of their own, and the kernels start all at one row")
    if engine.steps_asked != (loop.steps,):
        raise NotTaken("the query loss counts at other steps than the last (weights), which the kernels do not have")
    if inner.plan.step_constants or engine.outer.plan.step_constants:
        raise NotTaken("the model reads in which inner step it is (a buffer inner_step), which the kernels do not say")
    if engine.query_batch is not None:
        raise NotTaken("the query set counts in slices, one at each step, which the kernels do not have")
    if inner.shared.size:
        raise NotTaken(f"parameters {list(inner.shared.names)} are shared by the tasks, and the kernels move all")
    if inner.data_wanted or engine.outer.data_wanted:
        raise NotTaken("the data asks for a gradient, which the kernels do not have")


def choose(requested: str, device: torch.device, engine: Engine | None = None, *, start: str = "θ") -> Choice:
    """The backend for what the user asked for. Without an engine, before the first batch, "auto" stays open.

    Raises:
        RuntimeError: "triton" was asked for, and there is neither a GPU nor Triton's interpreter, or no kernel takes
            the program.
    """
    if requested not in ("auto", "triton"):
        return Choice(requested, "asked for")
    if device.type != "cuda" and requested == "auto":
        return Choice("torch", f"the module is on {device}, and Triton kernels run on GPUs")
    if device.type != "cuda":
        from fastmeta.kernels.launch import needs_a_gpu  # pyright: ignore[reportMissingImports]  # mapped by setup.py

        if needs_a_gpu():
            raise RuntimeError(
                f'backend="triton" needs a CUDA device or Triton\'s interpreter mode; the module is on {device} and '
                'TRITON_INTERPRET is not set. Move the module to a GPU, or use backend="auto" or "torch"'
            )
    if engine is None:
        return Choice(requested, "chosen at the first batch" if requested == "auto" else "asked for")
    from fastmeta.kernels.activation import KINDS  # pyright: ignore[reportMissingImports]  # mapped by setup.py
    from fastmeta.kernels.tiles import MOST_OUTPUTS  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    try:
        check_engine(engine, start)
        limits = Limits(KINDS, MOST_OUTPUTS)
        graph = convnet(engine, limits) if has_convolutions(engine) else Graph.chain(perceptron(engine, limits))
    except NotTaken as reason:
        if requested == "triton":
            raise RuntimeError(
                f'backend="triton": {reason}. Use backend="auto" or "torch", which run every program'
            ) from None
        return Choice("torch", f"no Triton kernel takes the program: {reason}")
    if requested == "auto":
        return Choice(
            "torch", 'Triton kernels take the program, but wait for their proof on a GPU: backend="triton" runs them'
        )
    return Choice("triton", "asked for", graph)
