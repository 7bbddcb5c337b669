"""The trees of tensors that users give to their module, and that it returns."""

from __future__ import annotations

from typing import Any, TypeAlias

Tree: TypeAlias = Any  # a tensor, or a tuple, list or dict of trees; None where there is no tensor


def call_with(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A user's input tree as call arguments: a tuple or list is unpacked, a dict becomes keywords."""
    if isinstance(inputs, dict):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}
