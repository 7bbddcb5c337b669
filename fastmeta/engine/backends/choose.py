"""Which backend runs a program, and why."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastmeta.engine.meta_step import Engine

from .convnet import Graph, convnet, has_convolutions
from .perceptron import Limits, NotTaken, perceptron

KERNEL_DEVICES = ("cuda",)
"""Where backend="auto" holds Triton kernels against torch ops."""


class Choice(NamedTuple):
    """A backend and why.

    Attributes:
        graph: what Triton kernels run, where they were chosen.
        candidate: what they could run, where "auto" takes torch ops until they have proved themselves.
        details: more lines of `explain()`.
        failed: whether kernels would run, had they not raised or computed something else.
    """

    backend: str
    why: str
    graph: Graph | None = None
    candidate: Graph | None = None
    details: tuple[str, ...] = ()
    failed: bool = False


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
    if engine.asked is not None:
        raise NotTaken("the query loss has a weight (weights), and the kernels count it once")
    if inner.plan.step_constants or engine.outer.plan.step_constants:
        raise NotTaken("the model reads in which inner step it is (a buffer inner_step), which the kernels do not say")
    if engine.query_batch is not None:
        raise NotTaken("the query set counts in slices, one at each step, which the kernels do not have")
    if inner.shared.size:
        raise NotTaken(f"parameters {list(inner.shared.names)} are shared by the tasks, and the kernels move all")
    if inner.data_wanted or engine.outer.data_wanted:
        raise NotTaken("the data asks for a gradient, which the kernels do not have")
    if engine.ends:
        raise NotTaken("the meta-step gives the adapted weights themselves too, which the kernels keep inside")


def graph_of(engine: Engine, start: str = "θ") -> Graph:
    """What Triton kernels run of an engine's program.

    Raises:
        NotTaken: no kernel takes it; the message says why.
        ImportError: Triton is not installed.
    """
    from fastmeta.kernels.activation import KINDS  # pyright: ignore[reportMissingImports]  # mapped by setup.py
    from fastmeta.kernels.tiles import MOST_OUTPUTS  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    check_engine(engine, start)
    limits = Limits(KINDS, MOST_OUTPUTS)
    return convnet(engine, limits) if has_convolutions(engine) else Graph.chain(perceptron(engine, limits))


def choose(requested: str, device: torch.device, engine: Engine | None = None, *, start: str = "θ") -> Choice:
    """The backend for what the user asked for. Without an engine, before the first batch, "auto" stays open.

    Raises:
        RuntimeError: "triton" was asked for, and there is neither a GPU nor Triton's interpreter, or no kernel takes
            the program.
    """
    if requested not in ("auto", "triton"):
        return Choice(requested, "asked for")
    if requested == "auto":
        return _auto(device, engine, start)
    if device.type != "cuda" and _needs_a_gpu():
        raise RuntimeError(
            f'backend="triton" needs a CUDA device or Triton\'s interpreter mode; the module is on {device} and '
            'TRITON_INTERPRET is not set. Move the module to a GPU, or use backend="auto" or "torch"'
        )
    if engine is None:
        return Choice("triton", "asked for")
    try:
        return Choice("triton", "asked for", graph_of(engine, start))
    except NotTaken as reason:
        raise RuntimeError(
            f'backend="triton": {reason}. Use backend="auto" or "torch", which run every program'
        ) from None


def _auto(device: torch.device, engine: Engine | None, start: str) -> Choice:
    """Torch ops, with what Triton kernels could run in their place."""
    if device.type not in KERNEL_DEVICES:
        return Choice("torch", f"the module is on {device}, and Triton kernels run on GPUs")
    if engine is None:
        return Choice("auto", "chosen at the first batch")
    try:
        graph = graph_of(engine, start)
        interpreted = device.type == "cuda" and not _needs_a_gpu()
    except NotTaken as reason:
        return Choice("torch", f"no Triton kernel takes the program: {reason}")
    except ImportError as error:
        return Choice("torch", f"Triton kernels cannot be imported: {error}")
    if interpreted:
        return Choice("torch", "Triton's interpreter is on (TRITON_INTERPRET), and a GPU is faster without kernels")
    return Choice("torch", "Triton kernels have not proved themselves yet", candidate=graph)


def _needs_a_gpu() -> bool:
    from fastmeta.kernels.launch import needs_a_gpu  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    return needs_a_gpu()
