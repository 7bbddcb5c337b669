"""Folders and zip files of pictures."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import torch

from .archive import Archive
from .images import Images, of_array

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def load_pictures(path: Path, size: int | None = None) -> Images:
    """Read a folder or zip file of pictures; the folder that a picture lies in is its class, where there are several.

    Args:
        path: the folder or zip file.
        size: side of the squares that all are resampled to; None leaves them as they are.

    Raises:
        FileNotFoundError: where nothing lies at `path`.
        ValueError: for a damaged file, no pictures at all, or pictures of several sizes without `size`.
        RuntimeError: without Pillow (`pip install "fastmeta[train]"`).
    """
    with Archive(path) as archive:
        names = [name for name in archive.names() if PurePosixPath(name).suffix.lower() in _SUFFIXES]
        names = [name for name in names if "__MACOSX" not in name]
        if not names:
            raise ValueError(
                f"{path} holds no images ({', '.join(sorted(_SUFFIXES))}), nor Omniglot's or CIFAR-10's files"
            )
        pictures = [archive.read_picture(name, size=size, mode="auto") for name in names]
    if any(picture.ndim == 3 for picture in pictures):
        pictures = [p if p.ndim == 3 else np.repeat(p[..., None], 3, 2) for p in pictures]
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise ValueError(
            f"{path} holds images of {len(sizes)} sizes, such as {sizes[0]} and {sizes[-1]}; choose one size "
            "(--image-size)"
        )
    folders = [str(PurePosixPath(name).parent) for name in names]
    classes = sorted(set(folders))
    labels = torch.tensor([classes.index(folder) for folder in folders]) if len(classes) > 1 else None
    return Images(of_array(np.stack(pictures)).pixels, labels, path.name)
