"""Warnings that point at the user's own line, however deep in fastmeta or PyTorch they arise."""

from __future__ import annotations

import sys
import warnings

_INSIDE = frozenset({"fastmeta", "torch"})


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn, naming the innermost line outside fastmeta and PyTorch."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
