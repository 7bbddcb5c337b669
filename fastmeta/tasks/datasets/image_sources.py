"""Images from whatever holds them: arrays, tensors, data sets, and the files that `FORMATS` names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .cifar import holds_cifar10, load_cifar10
from .images import Images, of_array
from .omniglot import Characters, holds_omniglot, load_omniglot
from .pictures import load_pictures


class Format(NamedTuple):
    """Files of one data set.

    Attributes:
        holds: whether a path is, or holds, such files.
        read: all such paths of a source together: what they share, such as the numbers of classes, is known here alone.
    """

    holds: Callable[[Path], bool]
    read: Callable[[Sequence[Path], int | None], Images]


def _cifar10(paths: Sequence[Path], _: int | None) -> Images:
    parts = [load_cifar10(path) for path in paths]
    return Images(torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]), "CIFAR-10")


def _array(path: Path) -> Images:
    try:
        return of_array(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no array of images ({error})") from error


FORMATS: dict[str, Format] = {
    "CIFAR-10": Format(holds_cifar10, _cifar10),
    ".npy": Format(lambda path: path.suffix == ".npy", lambda paths, _: joined([_array(path) for path in paths])),
    "Omniglot": Format(holds_omniglot, lambda paths, _: load_omniglot(paths).as_images()),
    "pictures": Format(lambda _: True, lambda paths, size: joined([load_pictures(path, size) for path in paths], size)),
}
"""How paths are read, by a name for a person: the first that holds a path reads it. A new data set is one line here."""


def as_images(source: Any, *, size: int | None = None, labels: Any = None) -> Images:
    """Make a set of images of a source.

    Args:
        source: `Images`; an array or tensor [n, H, W], [n, C, H, W] or [n, H, W, C], uint8 or floating point in
            [0, 1]; a `torch.utils.data.Dataset` of images or (image, label) pairs; `Characters`; the path of a folder
            or zip file of images (a class a folder), of Omniglot, of CIFAR-10's binary version, or of a .npy file.
        size: side of the squares that all are resampled to; None leaves them as they are.
        labels: [n] of an array, where it has some.

    Raises:
        TypeError: for another source.
        ValueError: for images of several sizes without `size`, of an odd number of channels, or none at all.
    """
    if isinstance(source, str | Path):
        return load_images([source], size=size)
    if isinstance(source, Characters):
        source = source.as_images()
    elif isinstance(source, np.ndarray | Tensor):
        source = of_array(source, labels)
    elif isinstance(source, Dataset):
        source = _of_dataset(source, size)
    if not isinstance(source, Images):
        raise TypeError(
            "source must be an array, a tensor, a torch.utils.data.Dataset, a path, Characters or Images, got "
            f"{type(source).__name__}"
        )
    return source if size is None else source.resized(size)


def load_images(paths: Iterable[str | Path], *, size: int | None = None) -> Images:
    """Read images from one or several paths, see `as_images`. Those of several must agree in channels and size.

    Classes of CIFAR-10 and of Omniglot are the same in all of their files; those of other paths are their own.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a damaged file, a path without images, or images that differ in size or channels.
        RuntimeError: without Pillow (`pip install "fastmeta[train]"`).
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ValueError("data must name at least one folder or file of images, got none")
    of_format: dict[str, list[Path]] = {}
    for path in paths:
        of_format.setdefault(next(name for name, form in FORMATS.items() if form.holds(path)), []).append(path)
    found = joined([FORMATS[name].read(held, size) for name, held in of_format.items()], size)
    return Images(found.pixels, found.labels, ", ".join(path.name for path in paths))


def joined(parts: Sequence[Images], size: int | None = None) -> Images:
    """Several sets as one; the classes of each are its own, and without labels of all there are none.

    Args:
        parts: at least one set.
        size: side of the squares that all are resampled to; None leaves them as they are.

    Raises:
        ValueError: for sets that differ in size or channels.
    """
    parts = [part if size is None else part.resized(size) for part in parts]
    shapes = sorted({part.shape for part in parts})
    if len(shapes) > 1:
        raise ValueError(f"images must agree in (channels, H, W), got {shapes}; choose one size (--image-size)")
    labels, first = [], 0
    for part in parts:
        if part.labels is not None:
            labels.append(part.labels + first)
            first += int(part.labels.max()) + 1
    whole = len(labels) == len(parts)
    return Images(torch.cat([part.pixels for part in parts]), torch.cat(labels) if whole else None, parts[0].title)


def _of_dataset(dataset: Any, size: int | None) -> Images:
    """Every item once, in order. Items are images, or tuples whose first two entries are an image and a label."""
    images, labels = [], []
    for i in range(len(dataset)):
        item = dataset[i]
        pair = isinstance(item, tuple | list)
        image = item[0] if pair else item
        one = of_array(image[None] if isinstance(image, Tensor) else np.asarray(image)[None])
        images.append((one if size is None else one.resized(size)).pixels)
        labels.append(int(item[1]) if pair and len(item) > 1 else -1)
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) != 1:
        raise ValueError(f"a data set must hold images of one shape, got {sizes or 'none'}; choose one size (size=...)")
    known = torch.tensor(labels)
    return Images(torch.cat(images), None if (known < 0).any() else known, type(dataset).__name__)
