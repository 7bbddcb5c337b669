"""Where a user's own `torch.compile` ends, as fastmeta plans and compiles for itself, and threads take turns."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from fastmeta.internals import not_compiled

P = ParamSpec("P")
R = TypeVar("R")


_PLANNING = threading.RLock()


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """`function` in one thread at a time: while a module is planned and proved it holds other tensors than its own."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _PLANNING:
            return function(*args, **kwargs)

    return call


def outside_of_compile(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which a `torch.compile` of whatever calls it does not look into: its graph breaks here."""
    outside = not_compiled(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            return outside(*args, **kwargs)
        return function(*args, **kwargs)

    return call
