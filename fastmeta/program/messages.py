"""How errors speak of tensors and of other errors."""

from __future__ import annotations

from torch import Tensor


def shape_of(x: Tensor) -> list[int]:
    """As a list, which prints as users write shapes."""
    return list(x.shape)


def dtype_of(x: Tensor) -> str:
    """Its name without "torch."."""
    return str(x.dtype).removeprefix("torch.")


def first_line(error: BaseException) -> str:
    """Kind and first line of an error, for a message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
