"""Checkpoints: one file, replaced atomically, read without executing code."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

FORMAT = 1
"""Raised by one when the contents change meaning."""

KEYS = (
    "configuration",
    "iteration",
    "model",
    "algorithm",
    "optimizer",
    "episode_generator",
    "torch_generator",
    "device_generator",
)
"""What every checkpoint holds, beside its format.

"model" is the state of the network alone, "algorithm" that of the whole meta-learner: the network's, under the prefix
`module.`, and what else the algorithm learns. Both name the same tensors, which the file holds once.
"""

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
    if os.name == "posix":  # Windows opens no folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, tensors on the CPU.

    Older versions wrote no "algorithm": it is then the network's state, which was all that they kept. Nothing
    in the file is executed (`weights_only=True`), and all is checked against the checksums within.

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
    missing = [key for key in KEYS if key not in state and key != "algorithm"]
    if missing:
        raise ValueError(f"{path} is no whole checkpoint of fastmeta: it lacks {', '.join(missing)}")
    if "algorithm" not in state:
        state["algorithm"] = {f"module.{name}": value for name, value in state["model"].items()}
    return state


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` (made where it is missing) against other runs; a killed process lets go by itself.

    Raises:
        RuntimeError: where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            unlock = _lock(file)
        except (BlockingIOError, PermissionError) as error:
            raise RuntimeError(f"another run is writing to {folder}; wait for it, or choose another folder") from error
        try:
            yield
        finally:
            unlock()


def _lock(file: IO[str]) -> Callable[[], None]:
    """Lock an open file without waiting; gives what unlocks it.

    Raises:
        BlockingIOError, PermissionError: where another process holds the lock (the latter on Windows).
    """
    try:
        import fcntl
    except ImportError:  # Windows, whose module locks bytes of a file
        msvcrt: Any = importlib.import_module("msvcrt")
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return partial(msvcrt.locking, file.fileno(), msvcrt.LK_UNLCK, 1)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return partial(fcntl.flock, file, fcntl.LOCK_UN)
