"""A checkpoint on images of another data set than it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fastmeta.tasks import Images, TaskFamily, load_images
from fastmeta.tasks.datasets.omniglot import holds_omniglot

from .config import RunConfig
from .families.settings import ClassifierSettings, Varied


def other_images(config: RunConfig, paths: Sequence[str]) -> Images | None:
    """The images of `paths` where they are not what the run's own family reads as it is; else None.

    That is for few-shot classifiers: other data than Omniglot for one of Omniglot, any for one of glyphs, and images of
    another size or in another number of channels for the rest; `mixed` matches its sources itself.
    """
    if not paths or not isinstance(config.tasks, ClassifierSettings) or config.tasks.task == "mixed":
        return None
    if config.tasks.task == "omniglot" and all(_may_be_omniglot(Path(path)) for path in paths):
        return None
    try:
        images = load_images(paths)
    except ValueError:
        images = load_images(paths, size=config.tasks.shape[1])  # of several sizes; other errors come again
    own = config.tasks.task in ("omniglot", "glyphs") or images.shape != config.tasks.shape
    return images if own else None


def episodes_of(config: RunConfig, images: Images, device: torch.device) -> TaskFamily:
    """The run's few-shot tasks of other images, which fit its network.

    Raises:
        ValueError: images without labels, or of too few classes or images a class.
    """
    settings = config.tasks
    assert isinstance(settings, ClassifierSettings)
    if isinstance(settings, Varied) and settings.varied:
        return settings.varied_episodes(images.table(), device)
    return settings.episodes(images.table(), device)


def _may_be_omniglot(path: Path) -> bool:
    return (path.suffix == ".zip" or not path.is_file()) and holds_omniglot(path)
