"""Images from whatever holds them: arrays, tensors, data sets, and the files that the registry names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from .images import Images, joined, of_array
from .omniglot import Characters
from .registry import NAMED, SOURCES, source_of
from .torch_datasets import is_hugging_face, of_dataset


def as_images(source: Any, *, size: int | None = None, labels: Any = None, reservoir: int | None = None) -> Images:
    """Make a set of images of a source.

    Args:
        source: `Images`; an array or tensor [n, H, W], [n, C, H, W] or [n, H, W, C], uint8 or floating point in
            [0, 1]; a `torch.utils.data.Dataset` or a `datasets.Dataset` of Hugging Face whose items are images,
            (image, label) pairs or dictionaries of both; `Characters`; the path of a folder or zip file of images (a
            class a folder), of Omniglot, of CIFAR-10's binary version, of IDX files, or of a .npy or .npz file.
        size: side of the squares that all are resampled to; None leaves them as they are.
        labels: [n] of an array, where it has some.
        reservoir: images that are kept of an `IterableDataset`, drawn with equal probability.

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
    elif isinstance(source, Dataset) or is_hugging_face(source):
        source = of_dataset(source, size=size, reservoir=reservoir)
    if not isinstance(source, Images):
        raise TypeError(
            "source must be an array, a tensor, a torch.utils.data.Dataset, a datasets.Dataset, a path, Characters or "
            f"Images, got {type(source).__name__}"
        )
    return source if size is None else source.resized(size)


def load_images(paths: Iterable[str | Path], *, size: int | None = None) -> Images:
    """Read images from one or several paths, see `as_images`. Those of several must agree in channels and size.

    Classes of CIFAR-10 and of Omniglot are the same in all of their files; those of other paths are their own. A
    published division of CIFAR-100 is asked for as "cifar-fs=FOLDER" or "fc100=FOLDER".

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a damaged file, a path without images, or images that differ in size or channels.
        RuntimeError: without Pillow (`pip install "fastmeta[train]"`).
    """
    given = [str(path) for path in paths]
    if not given:
        raise ValueError("data must name at least one folder or file of images, got none")
    parts, titles, of_source = list[Images](), list[str](), dict[str, list[Path]]()
    for text in given:
        name, _, folder = text.partition("=")
        if folder and name in NAMED:
            parts.append(NAMED[name](Path(folder)))
            titles.append(name)
        elif text in NAMED and not Path(text).exists():
            raise ValueError(f"{text} needs the folder of its files: --data {text}=FOLDER")
        else:
            of_source.setdefault(source_of(Path(text)), []).append(Path(text))
            titles.append(Path(text).name)
    parts += [SOURCES[name].read(held, size) for name, held in of_source.items()]
    return replace(joined(parts, size), title=", ".join(titles))
