"""What runs a meta-step on all tasks: the interface of every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from fastmeta.engine.meta_step import Engine, MetaGradient
from fastmeta.engine.objective import Context, Data


class Backend(Protocol):
    """What runs the engine's functions on all tasks of a meta-batch."""

    engine: Engine
    chunk: int | None
    how: str  # what runs the ops, for explain()

    def keys(self) -> Tensor: ...

    def meta_step(
        self, params: Sequence[Tensor], support: Data, query: Data, context: Context, *, keep: bool
    ) -> MetaGradient: ...

    def adapt(
        self, params: Sequence[Tensor], support: Data, context: Context, *, keep: bool
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]: ...

    def apply(
        self, phi: Tensor, inputs: tuple[Tensor, ...], context: Context
    ) -> tuple[list[Tensor], Callable[[Sequence[Tensor | None]], Tensor]]: ...
