"""The options that every meta-learner takes, as a type: an algorithm's own `__init__` hands them on."""

from __future__ import annotations

from typing import Literal, TypedDict

from fastmeta.engine.options import Loss
from fastmeta.optim.base import InnerRule


class WithoutRule(TypedDict, total=False):
    """Those of a learner that brings its own inner rule. `fastmeta.MetaLearner` describes them."""

    inner_loss: Loss
    inner_steps: int
    outer_loss: Loss | None
    inner_batch_size: int | None
    inner_clip_norm: float | None
    first_order: bool
    backend: Literal["auto", "torch", "triton", "reference"]
    compile: bool
    cuda_graph: bool
    memory: Literal["save", "recompute"]
    task_chunk: int | None
    bn_statistics: Literal["batch", "support"]
    precision: Literal["float32", "tf32", "bfloat16"]
    proof: Literal["first", "off"]


class Arguments(WithoutRule, total=False):
    """All of them.

    Example:
        >>> class Mine(fastmeta.MAML):
        ...     def __init__(self, model: nn.Module, *, strength: float = 1.0, **options: Unpack[Arguments]) -> None:
        ...         super().__init__(model, **options)
    """

    inner_optimizer: InnerRule
