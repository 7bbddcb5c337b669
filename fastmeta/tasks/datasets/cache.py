"""Decoded images in one file, which later runs map instead of decoding again."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmeta.cache import PLACE, cache_folder

FROM_BYTES = 64 * 2**20
"""Sets of images that take less are decoded anew each time, and kept in memory."""


def mapped(path: Path) -> Tensor:
    """The array of a .npy file, of which only what is read takes memory.

    Raises:
        ValueError: for a file that is no array.
        FileNotFoundError: where there is none.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no array of images ({error})") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # and nobody writes to it
        return torch.from_numpy(array)


def stored(pictures: Iterable[np.ndarray], shape: tuple[int, ...], fingerprint: str) -> tuple[Tensor, bool]:
    """Decoded pictures as one tensor, and whether it is mapped from a file.

    Args:
        pictures: uint8 [channels, H, W] each, read only where no file of this fingerprint is there yet.
        shape: of the result, uint8 [n, channels, H, W].
        fingerprint: of everything that decides the pixels.

    Raises:
        OSError: where the file cannot be written; nothing is left behind.
    """
    if np.prod(shape, dtype=np.int64) < FROM_BYTES:
        pixels = np.empty(shape, dtype=np.uint8)
        for row, picture in enumerate(pictures):
            pixels[row] = picture
        return torch.from_numpy(pixels), False
    path = cache_folder() / f"images-{fingerprint}.npy"
    if not path.exists():
        _write(path, pictures, shape)
    return mapped(path), True


def _write(path: Path, pictures: Iterable[np.ndarray], shape: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")  # two runs may decode at once
    try:
        with temporary.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for picture in pictures:
                file.write(np.ascontiguousarray(picture).tobytes())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{error.strerror} while {np.prod(shape, dtype=np.int64) / 2**20:,.0f} MiB of decoded images were written; "
            f"make room, or name another folder by {PLACE}",
            str(path),
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def spooled(shape: tuple[int, ...]) -> Tensor:
    """Room for images that are about to be read: in memory, or, where they are many, in a file that goes with it."""
    if np.prod(shape, dtype=np.int64) < FROM_BYTES:
        return torch.empty(shape, dtype=torch.uint8)
    place = cache_folder()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=place) as file:
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="w+", shape=shape))
