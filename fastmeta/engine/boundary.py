"""Where a user's own `torch.compile` ends, as fastmeta plans and compiles for itself, and threads take turns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from fastmeta.internals import not_compiled
from fastmeta.stateless import TURN

P = ParamSpec("P")
R = TypeVar("R")


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """`function` in one thread at a time, and while none runs a plain loop: a module then holds its own tensors."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with TURN:
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
