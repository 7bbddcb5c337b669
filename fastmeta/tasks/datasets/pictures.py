"""Folders and zip files of pictures, with the classes and parts that folders and split files say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from . import cache
from .archive import Archive
from .images import Images
from .split_files import find_division

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
"""Of files that are taken for pictures."""


def load_pictures(path: Path, size: int | None = None) -> Images:
    """Read a folder or zip file of pictures; the folder that a picture lies in is its class, where there are several.

    Folders train, val and test, and files train.csv or train.txt (`find_division`) divide the pictures.

    Args:
        path: the folder or zip file.
        size: side of the squares that all are resampled to; None leaves them as they are.

    Raises:
        FileNotFoundError: where nothing lies at `path`.
        ValueError: for a damaged file, no pictures at all, pictures of several sizes without `size`, or split files
            that do not fit the pictures.
        RuntimeError: without Pillow (`pip install "fastmeta[train]"`).
    """
    with Archive(path) as archive:
        names = [name for name in archive.names() if PurePosixPath(name).suffix.lower() in SUFFIXES]
        names = [name for name in names if "__MACOSX" not in name]
        if not names:
            raise ValueError(
                f"{path} holds no images ({', '.join(sorted(SUFFIXES))}), nor Omniglot's, CIFAR's or MNIST's files"
            )
        division = find_division(archive, names)
        if division is not None:
            left_out = len(names) - len(division.names)
            pixels, mapped = decoded(archive, division.names, size)
            numbers, classes = numbered(division.labels)
            source = division.source + (f"; {left_out:,} images that it does not name are left out" if left_out else "")
            return Images(pixels, numbers, path.name, classes, torch.tensor(division.parts), source, mapped)
        pixels, mapped = decoded(archive, names, size)
    folders = [str(PurePosixPath(name).parent) for name in names]
    labels, classes = numbered(folders if len(set(folders)) > 1 else [])
    return Images(pixels, labels, path.name, classes, mapped=mapped)


def numbered(names: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Class names as numbers int64 [n], and the classes, sorted; None and () where there are none."""
    classes = tuple(sorted(set(names)))
    number = {name: i for i, name in enumerate(classes)}
    return (torch.tensor([number[name] for name in names]) if names else None), classes


def decoded(archive: Archive, names: Sequence[str], size: int | None) -> tuple[Tensor, bool]:
    """The pixels of some pictures, uint8 [n, 1 or 3, H, W], and whether they are mapped from a file (`cache.stored`).

    All are grey where all files are.

    Raises:
        ValueError: for a damaged picture, or pictures of several sizes without `size`.
    """
    stamps = [archive.stamp(name) for name in names]
    fingerprint = hashlib.sha256(repr((str(archive.path.absolute()), size, stamps)).encode()).hexdigest()[:24]
    grey, sizes = True, set[tuple[int, int]]()
    for name in names:
        one, shape = archive.header(name)
        grey = grey and one
        sizes.add(shape)
    if size is None and len(sizes) > 1:
        raise ValueError(
            f"{archive.path} holds images of {len(sizes)} sizes, such as {min(sizes)} and {max(sizes)}; choose one "
            "size (--image-size)"
        )
    height, width = (size, size) if size is not None else next(iter(sizes))
    mode: Literal["L", "RGB"] = "L" if grey else "RGB"

    def pictures() -> Iterator[np.ndarray]:
        for name in names:
            picture = archive.read_picture(name, size=size, mode=mode)
            yield picture[None] if grey else picture.transpose(2, 0, 1)

    return cache.stored(pictures(), (len(names), 1 if grey else 3, height, width), fingerprint)
