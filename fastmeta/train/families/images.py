"""What the families on images of the user's own share: reading them, and keeping some of them for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from fastmeta.tasks import UMTRA, Episodes, Images, TaskFamily, draw_glyphs, load_images
from fastmeta.tasks.base import split_count
from fastmeta.tasks.cactus import Clustered

from .base import Family, random_images
from .held_out import check_left
from .settings import ClassSettings, HeldOut, ImageSize

IMAGE_DATA = (
    "folders or zip files of images, with split files or not, Omniglot's, CIFAR-10's, IDX, .npy or .npz files, "
    "cifar-fs=FOLDER or fc100=FOLDER of CIFAR-100; none: random glyphs"
)


@dataclass(frozen=True, kw_only=True)
class ImageSettings(ClassSettings, ImageSize, HeldOut):
    """Tasks of classes of the user's own images, some of which are kept for evaluation."""


S = TypeVar("S", bound=ImageSettings)


class ImageFamily(Family[S, Images], Generic[S]):
    """A family on images."""

    def load(self, settings: S, paths: Sequence[str]) -> Images:
        """The images; glyphs without paths."""
        size = settings.image_size or (settings.shape[1] if settings.shape else None)
        return load_images(paths, size=size) if paths else draw_glyphs(size=size or 28)

    def shape(self, settings: S, source: Images | Clustered) -> tuple[int, ...]:
        """(channels, H, W)."""
        return images_of(source).shape

    def usual_shape(self, settings: S) -> tuple[int, ...]:
        """Of glyphs."""
        return (1, settings.image_size or 28, settings.image_size or 28)

    def example(self, settings: S, device: torch.device) -> Episodes:
        """Random images."""
        return random_images(settings.ways, settings.training_shots, settings.queries, settings.shape, device)


def images_of(source: Images | Clustered) -> Images:
    """The images, without what was found in them."""
    return source.images if isinstance(source, Clustered) else source


def split_by_class(settings: ImageSettings, source: Images | Clustered) -> tuple[Images, Images]:
    """Images to learn from, and images of other classes to score on, where there are labels or the data is divided."""
    images = images_of(source)
    if images.part is None and (images.labels is None or not settings.held_out):
        return images, images
    return images.split_classes(settings.held_out)


def split_by_image(settings: ImageSettings, source: Images) -> tuple[Images, Images]:
    """Images to learn from, and others to score on."""
    return source.split(settings.held_out) if settings.held_out or source.part is not None else (source, source)


def check_classes(settings: ImageSettings, source: Images | Clustered, *, train: int, test: int, reason: str) -> None:
    """Raise ValueError where too few classes are left to learn from, or to score on, see `check_left`."""
    images = images_of(source)
    labels = images.labels
    if images.part is not None and labels is not None:
        _check_parts(images, {"train": train, "test" if "test" in images.parts else "val": test}, reason)
        return
    count = 0 if labels is None else len(labels.unique())
    if count < 2:
        return  # nothing is split, or `split_classes` says why it cannot be

    def counts(held_out: float) -> tuple[int, int]:
        first = split_count(count, held_out)
        return first, count - first

    check_left(
        settings.held_out,
        kind="classes",
        counts=counts,
        train=train,
        test=test,
        reason=reason,
        remedy="ask for fewer ways (--ways) or give images of more classes",
    )


def _check_parts(images: Images, needed: Mapping[str, int], reason: str) -> None:
    """Raise ValueError where a part of divided images has too few classes."""
    assert images.labels is not None
    for part, least in needed.items():
        count = len(images.labels[images.rows_of(part)].unique())
        if count < least:
            raise ValueError(
                f"the {part} part of {images.title} has {count} classes by {images.divided_by}, but {reason} need "
                f"{least}: ask for fewer ways (--ways), or move classes into this part"
            )


def label_tests(settings: ImageSettings, source: Images | Clustered, device: torch.device) -> dict[str, TaskFamily]:
    """Episodes of the labels that training did not read; of images without labels, tasks by augmentation."""
    images, unseen = split_by_class(settings, source)
    ways = settings.ways
    if images.labels is None:
        return {"tasks of its own, as the images have no labels": UMTRA(images, ways=ways, device=device)}
    check_classes(settings, source, train=1, test=ways, reason=f"{ways} ways")
    title = "labelled episodes" if unseen is images else "labelled episodes of unseen classes"
    return {f"{title}, {settings.size}": settings.episodes(unseen.table(), device)}
