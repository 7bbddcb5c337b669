"""Pickles of arrays and plain containers, and of nothing else: a pickle may otherwise run any program."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

_ALLOWED = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in ((f"{package}.multiarray", "_reconstruct"), (f"{package}.multiarray", "scalar"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays and plain containers are read")
        return super().find_class(module, name)


def load_plain(path: Path) -> Any:
    """What a pickle holds, where that is NumPy arrays of numbers in lists, tuples and dictionaries.

    Raises:
        ValueError: for a damaged pickle, or one that asks for anything else, which is not run.
    """
    try:
        with path.open("rb") as file:
            return _Plain(file, encoding="bytes").load()
    # a damaged pickle raises whatever its bytes happen to call for
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is no pickle of arrays ({error}); download it again from its source") from error
