"""Checkpoints: one file, replaced atomically, read without executing code."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
"""Raised by one when the contents change meaning."""

KEYS = (
    "configuration",
    "iteration",
    "model",
    "optimizer",
    "episode_generator",
    "torch_generator",
    "device_generator",
)
"""What every checkpoint holds, beside its format."""

_REMEDY = "restore it from a copy, or move it away and start again"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (`KEYS` to tensors, numbers, strings, and lists, tuples, dicts of them) to `path`.

    The file at `path` is at every moment either the old one or the new one, whole: the new one is written
    beside it, forced to disk, and renamed over it.
    """
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, tensors on the CPU.

    Nothing in the file is executed (`weights_only=True`), and all is checked against the checksums within.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a damaged file, one that is no checkpoint of fastmeta, or one of another format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and numbers: it is no checkpoint of fastmeta, and was not loaded"
        ) from error
    # torch.load raises almost anything for a damaged file; testzip as well, for damaged headers.
    except Exception as error:
        raise ValueError(f"{path} is damaged or no checkpoint ({error}); {_REMEDY}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"{path} is no checkpoint of fastmeta: it has no field 'format'")
    if state["format"] != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {state['format']}, this version of fastmeta reads {FORMAT}; "
            f"use the version that wrote it, or start again"
        )
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise ValueError(f"{path} is no whole checkpoint of fastmeta: it lacks {', '.join(missing)}")
    return state


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` (made where it is missing) against other runs; a killed process lets go by itself.

    Raises:
        RuntimeError: where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"another run is writing to {folder}; wait for it, or choose another folder") from error
        yield
