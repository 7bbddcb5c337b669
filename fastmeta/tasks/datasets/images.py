"""A set of images, from whatever holds one: arrays, tensors, data sets, folders, zip files, Omniglot, CIFAR-10."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from .archive import Archive
from .cifar import load_cifar10
from .class_table import ClassTable
from .omniglot import Characters, holds_omniglot, load_omniglot

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Images:
    """Images of one size.

    Attributes:
        pixels: uint8 [n, channels, H, W]; one channel (drawings, ink is 255) or three.
        labels: int64 [n], or None. No family of tasks without labels reads them: they serve to score what it learned.
        title: where they come from, for a person.
    """

    pixels: Tensor
    labels: Tensor | None
    title: str = "images"

    def __post_init__(self) -> None:
        if self.pixels.dim() != 4 or self.pixels.dtype != torch.uint8 or self.pixels.shape[1] not in (1, 3):
            raise ValueError(
                "pixels must be uint8 [n, 1 or 3 channels, H, W], got "
                f"{str(self.pixels.dtype).removeprefix('torch.')} {list(self.pixels.shape)}; as_images makes them"
            )
        if self.labels is not None and self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(f"labels must be [{len(self.pixels)}], one an image, got {list(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def unlabelled(self) -> Images:
        """The same images without their labels."""
        return Images(self.pixels, None, self.title)

    def take(self, rows: Tensor) -> Images:
        """Some of the images."""
        return Images(self.pixels[rows], None if self.labels is None else self.labels[rows], self.title)

    def split_classes(self, held_out: float) -> tuple[Images, Images]:
        """The images of the first classes, and those of the last share `held_out` of them (at least one).

        Raises:
            ValueError: without labels, or with fewer than two classes.
        """
        classes = [] if self.labels is None else self.labels.unique().tolist()
        if self.labels is None or len(classes) < 2:
            raise ValueError(f"{self.title}: classes can be held out of labelled images only, of at least two classes")
        first = min(max(round(len(classes) * (1 - held_out)), 1), len(classes) - 1)
        seen = torch.isin(self.labels, torch.tensor(classes[:first]))
        return self.take(seen.nonzero().squeeze(1)), self.take((~seen).nonzero().squeeze(1))

    def split(self, held_out: float) -> tuple[Images, Images]:
        """All but a share `held_out` of the images, and that share, drawn at random but always the same."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        first = min(max(round(len(self) * (1 - held_out)), 1), len(self) - 1)
        return self.take(order[:first].sort().values), self.take(order[first:].sort().values)

    def table(self) -> ClassTable:
        """The labels' classes.

        Raises:
            ValueError: without labels.
        """
        if self.labels is None:
            raise ValueError(
                f"{self.title} carries no labels, so episodes of its classes cannot be drawn; give images in one "
                "folder a class"
            )
        return ClassTable.of_labels(self.pixels, self.labels)

    def resized(self, size: int) -> Images:
        """Resampled to size × size, antialiased."""
        if self.shape[1:] == (size, size):
            return self
        parts = [
            F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255).byte()
            for part in self.pixels.split(1000)
        ]
        return Images(torch.cat(parts), self.labels, self.title)

    def fingerprint(self) -> str:
        """A digest of the pixels: two sets with the same one give the same episodes."""
        digest = hashlib.sha256(str(list(self.pixels.shape)).encode())
        digest.update(self.pixels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """For a person: how many, of what size."""
        channels, height, width = self.shape
        colour = "colour" if channels == 3 else "grey"
        return f"{self.title}: {len(self):,} {colour} images of {height} × {width}"


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
        source = _of_characters(source)
    elif isinstance(source, np.ndarray | Tensor):
        source = _of_array(source, labels)
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

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a damaged file, a path without images, or images that differ in size or channels.
        RuntimeError: without Pillow (`pip install "fastmeta[train]"`).
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ValueError("data must name at least one folder or file of images, got none")
    omniglot = [
        path for path in paths if path.exists() and path.suffix not in {".bin", ".npy"} and holds_omniglot(path)
    ]
    parts = [_of_characters(load_omniglot(omniglot))] if omniglot else []
    parts += [_load_one(path, size) for path in paths if path not in omniglot]
    parts = [part if size is None else part.resized(size) for part in parts]
    shapes = sorted({part.shape for part in parts})
    if len(shapes) > 1:
        raise ValueError(f"images must agree in (channels, H, W), got {shapes}; choose one size (--image-size)")
    labelled = [part.labels for part in parts if part.labels is not None]
    pixels, labels = torch.cat([part.pixels for part in parts]), None
    if len(labelled) == len(parts):
        labels = labelled[0] if len(parts) == 1 else _merged(paths, parts, labelled)
    return Images(pixels, labels, ", ".join(path.name for path in paths))


def _merged(paths: Sequence[Path], parts: Sequence[Images], labels: Sequence[Tensor]) -> Tensor:
    """CIFAR-10's files number the same classes; classes of other sources are their own."""
    if all(path.suffix == ".bin" for path in paths):
        return torch.cat(list(labels))
    shifts = [0]
    for part in labels:
        shifts.append(shifts[-1] + int(part.max()) + 1)
    return torch.cat([part + shift for part, shift in zip(labels, shifts[: len(parts)], strict=True)])


def _load_one(path: Path, size: int | None) -> Images:
    if path.suffix == ".bin" or (path.is_dir() and any(path.glob("data_batch_*.bin"))):
        return Images(*load_cifar10(path), title=path.name)
    if path.suffix == ".npy":
        try:
            return _of_array(np.load(path, allow_pickle=False), None)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no array of images ({error})") from error
    return _read_files(path, size)


def _read_files(path: Path, size: int | None) -> Images:
    """A folder or zip file of pictures; the folder that a picture lies in is its class, where there are several."""
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
    return Images(_of_array(np.stack(pictures), None).pixels, labels, path.name)


def _of_characters(characters: Characters) -> Images:
    count, most = characters.images.shape[:2]
    drawn = torch.arange(most) < characters.drawers[:, None]
    labels = torch.arange(count)[:, None].expand(-1, most)
    return Images(characters.images[drawn].unsqueeze(1), labels[drawn], "Omniglot")


def _of_array(array: np.ndarray | Tensor, labels: Any) -> Images:
    x = torch.as_tensor(array).detach().cpu()
    shape = list(x.shape)
    if x.dim() == 3:
        x = x.unsqueeze(1)
    if x.dim() == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.dim() != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise ValueError(f"images must be [n, H, W], or [n, C, H, W] or [n, H, W, C] with C = 1 or 3, got {shape}")
    if x.is_floating_point():
        low, high = x.aminmax()
        if not (low >= 0 and high <= 1):  # NaN too
            raise ValueError(f"images of floating point must lie in [0, 1], got values from {low:g} to {high:g}")
        x = (x * 255).round()
    elif x.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8, or floating point in [0, 1], got {str(x.dtype).removeprefix('torch.')}"
        )
    return Images(x.to(torch.uint8).contiguous(), None if labels is None else torch.as_tensor(labels).long().cpu())


def _of_dataset(dataset: Any, size: int | None) -> Images:
    """Every item once, in order. Items are images, or tuples whose first two entries are an image and a label."""
    images, labels = [], []
    for i in range(len(dataset)):
        item = dataset[i]
        pair = isinstance(item, tuple | list)
        image = item[0] if pair else item
        one = _of_array(image[None] if isinstance(image, Tensor) else np.asarray(image)[None], None)
        images.append((one if size is None else one.resized(size)).pixels)
        labels.append(int(item[1]) if pair and len(item) > 1 else -1)
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) != 1:
        raise ValueError(f"a data set must hold images of one shape, got {sizes or 'none'}; choose one size (size=...)")
    known = torch.tensor(labels)
    return Images(torch.cat(images), None if (known < 0).any() else known, type(dataset).__name__)
