"""CIFAR-10 in its binary version, `cifar-10-binary.tar.gz` unpacked (Krizhevsky 2009).

CIFAR-100, whose records have two labels, and the Python and Matlab versions are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .images import Images

_PIXELS = 3 * 32 * 32


def holds_cifar10(path: Path) -> bool:
    """Whether a path is one of CIFAR-10's files, or a folder that holds some."""
    return path.suffix == ".bin" or (path.is_dir() and any(path.glob("data_batch_*.bin")))


def load_cifar10(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read one `.bin` file, or all `data_batch_*.bin` of a folder: images uint8 [n, 3, 32, 32], labels int64 [n].

    A record is one label byte, then 3072 pixel bytes, the planes of red, green and blue.

    Raises:
        FileNotFoundError: nothing lies at `path`, or the folder holds no such file.
        ValueError: a file that does not consist of whole records, or a label beyond 9.
    """
    path = Path(path)
    files = sorted(path.glob("data_batch_*.bin")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"{path} is no file of CIFAR-10, nor a folder that holds data_batch_1.bin ...")
    parts = [_read(file) for file in files]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def load_cifar10_images(paths: Sequence[Path], _: int | None) -> Images:
    """Several such files or folders as one set; their classes are the same ones."""
    parts = [load_cifar10(path) for path in paths]
    return Images(torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]), "CIFAR-10")


def _read(path: Path) -> tuple[Tensor, Tensor]:
    data = np.fromfile(path, dtype=np.uint8)
    if not len(data) or len(data) % (_PIXELS + 1):
        raise ValueError(
            f"{path} does not consist of whole records of {_PIXELS + 1} bytes: it has {len(data):,} bytes, "
            f"{len(data) % (_PIXELS + 1):,} too many; it is truncated or no file of CIFAR-10's binary version"
        )
    records = data.reshape(-1, _PIXELS + 1)
    wrong = np.flatnonzero(records[:, 0] > 9)
    if len(wrong):
        raise ValueError(
            f"{path}: record {wrong[0]} has label {records[wrong[0], 0]}, CIFAR-10's go from 0 to 9; the file is "
            "damaged or of another data set: download the binary version again"
        )
    images = torch.from_numpy(records[:, 1:].copy()).view(-1, 3, 32, 32)
    return images, torch.from_numpy(records[:, 0].astype(np.int64))
