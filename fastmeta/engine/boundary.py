"""Where a user's own `torch.compile` ends: fastmeta plans and compiles for itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo  # as torch.optim does: torch.compiler.disable would import the compiler now

P = ParamSpec("P")
R = TypeVar("R")


def outside_of_compile(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which a `torch.compile` of whatever calls it does not look into: its graph breaks here."""
    outside = _disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            return outside(*args, **kwargs)
        return function(*args, **kwargs)

    return call
