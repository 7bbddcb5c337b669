"""Images of a `torch.utils.data.Dataset`, or of Hugging Face's `datasets.Dataset`, whatever its items look like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from fastmeta.tasks.base import check_count

from . import cache
from .archive import pixels_of
from .images import SPLITS, Images, joined, of_array
from .pictures import numbered

_IMAGES = ("image", "img", "images", "pixel_values", "x", "data")
_LABELS = ("label", "labels", "fine_label", "target", "class", "character", "y")
_PARTS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}


def is_hugging_face(source: object) -> bool:
    """Whether an object is a data set of Hugging Face's `datasets`, or a dictionary of its parts."""
    if isinstance(source, Mapping):
        return bool(source) and all(map(is_hugging_face, source.values()))
    return all(hasattr(source, name) for name in ("features", "column_names", "__iter__"))


def of_dataset(source: Any, *, size: int | None = None, reservoir: int | None = None) -> Images:
    """Every item once, in order; of a stream, as many as the reservoir holds.

    Args:
        source: items are images, tuples of an image and a label, or dictionaries of both; images are Pillow's of any
            mode, or arrays or tensors as `of_array` takes them; labels are integers or names. A dictionary of data
            sets (train, validation, test) is divided so.
        size: side of the squares that all are resampled to; None leaves them as they are.
        reservoir: images that are kept of a stream (`IterableDataset`), each with equal probability.

    Raises:
        TypeError, ValueError: for items that are no images, differ in size, or labels of several kinds; for a stream
            without `reservoir`.
    """
    if isinstance(source, Mapping):
        unknown = sorted(set(source) - set(_PARTS))
        if unknown:
            raise ValueError(
                f"parts must be called {', '.join(_PARTS)}, got {', '.join(unknown)}; give one of them alone"
            )
        named = {_PARTS[name]: of_dataset(one, size=size, reservoir=reservoir) for name, one in source.items()}
        parts = [replace(one, part=torch.full((len(one),), part)) for part, one in sorted(named.items())]
        return joined(
            parts, shared_classes=True, divided_by="the data set's " + ", ".join(SPLITS[p] for p in sorted(named))
        )
    streams = isinstance(source, IterableDataset) or not hasattr(source, "__len__")
    whole: Any = _reservoir(source, reservoir) if streams else source
    items = (whole[i] for i in range(len(whole)))
    pixels, labels = _gathered(items, len(whole), size, type(source).__name__)
    numbers, classes = _numbers(labels, _names(source))
    return Images(pixels, numbers, type(source).__name__, classes)


def _reservoir(source: Iterable[Any], reservoir: int | None) -> list[Any]:
    if reservoir is None:
        raise ValueError(
            f"{type(source).__name__} is a stream, which has no length and no order to draw classes from: say how many "
            "of its images to keep in memory (reservoir=10_000)"
        )
    check_count("reservoir", reservoir)
    generator, kept = np.random.default_rng(0), list[Any]()
    for i, item in enumerate(source):
        if i < reservoir:
            kept.append(item)
        elif (place := int(generator.integers(i + 1))) < reservoir:  # Vitter's algorithm R
            kept[place] = item
    return kept


def _gathered(items: Iterable[Any], count: int, size: int | None, name: str) -> tuple[Tensor, list[Any]]:
    """Pixels of all items, and their labels (None: no label)."""
    pixels, labels = torch.empty(0, dtype=torch.uint8), list[Any]()
    for row, (image, label) in enumerate(_pairs(items, name)):
        one = image if size is None else image.resized(size)
        if row == 0:
            pixels = cache.spooled((count, *one.shape))
        if one.shape[1:] != tuple(pixels.shape[2:]):
            raise ValueError(
                f"a data set must hold images of one shape, got {one.shape} in {name}[{row}] and "
                f"{tuple(pixels.shape[1:])} before; choose one size (size=...)"
            )
        if one.shape[0] > pixels.shape[1]:  # a coloured one after grey ones
            grey, pixels = pixels, cache.spooled((count, 3, *one.shape[1:]))
            pixels[:row] = grey[:row]
        pixels[row] = one.pixels[0]
        labels.append(label)
    if not labels:
        raise ValueError(f"a data set must hold images of one shape, got none: {name} is empty")
    return pixels, labels


def _pairs(items: Iterable[Any], name: str) -> Iterator[tuple[Images, Any]]:
    for row, item in enumerate(items):
        image, label = _image_and_label(item, f"{name}[{row}]")
        try:
            yield _one(image), label
        except (ValueError, TypeError, RuntimeError) as error:
            cure = ""
            if "must lie in [0, 1]" in str(error):
                cure = "; leave normalisation out of its transform, and give it as transform=... of the episodes"
            raise ValueError(f"{name}[{row}]: {error}{cure}") from error


def _image_and_label(item: Any, place: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        image = next((key for key in _IMAGES if key in item), None)
        if image is None:
            raise ValueError(
                f"{place} has the keys {', '.join(map(str, item))}, and none is known to be the image: call it image, "
                "and its class label"
            )
        label = next((key for key in _LABELS if key in item), None)
        return item[image], None if label is None else item[label]
    if isinstance(item, tuple | list):
        if not item:
            raise ValueError(f"{place} is empty; items must be images, or pairs of an image and a label")
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _one(image: Any) -> Images:
    if hasattr(image, "convert") and hasattr(image, "mode"):  # Pillow's
        return of_array(pixels_of(image, size=None, mode="auto")[None])
    if isinstance(image, Tensor):
        return of_array(image[None])
    if not isinstance(image, np.ndarray | list | tuple):
        raise TypeError(f"an image must be Pillow's, an array or a tensor, got {type(image).__name__}")
    return of_array(np.asarray(image)[None])


def _names(source: Any) -> tuple[str, ...]:
    """What the data set calls its classes; () where it does not."""
    features = getattr(source, "features", None)
    if isinstance(features, Mapping):
        found = next((features[key] for key in _LABELS if key in features), None)
        return tuple(getattr(found, "names", None) or ())
    names = getattr(source, "classes", None)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()


def _numbers(labels: list[Any], names: tuple[str, ...]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels as int64 [n] and their names; None where some have none (or a negative one)."""
    if any(label is None for label in labels):
        return None, ()
    if all(isinstance(label, str) for label in labels):
        return numbered(labels)
    try:
        numbers = torch.tensor([_integer(label) for label in labels])
    except (ValueError, TypeError) as error:
        raise ValueError(f"labels must be integers, or all of them names ({error})") from error
    if bool((numbers < 0).any()):
        return None, ()
    return numbers, names if len(names) > int(numbers.max()) else ()


def _integer(label: Any) -> int:
    number = np.asarray(label)
    if number.size != 1 or number.dtype.kind not in "iub":
        raise TypeError(f"got {label!r}")
    return int(number.reshape(()))
