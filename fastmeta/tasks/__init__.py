"""Families of tasks, and the samplers that draw meta-batches of episodes from them."""

from __future__ import annotations

from fastmeta.tasks.datasets.cifar import load_cifar10
from fastmeta.tasks.datasets.class_table import ClassTable
from fastmeta.tasks.datasets.image_sources import as_images, load_images
from fastmeta.tasks.datasets.images import Images
from fastmeta.tasks.datasets.omniglot import Characters, load_omniglot
from fastmeta.tasks.datasets.one_shot_runs import Run, load_runs, stack_runs
from fastmeta.tasks.datasets.series import Series, as_series, draw_waves, load_series
from fastmeta.tasks.datasets.text import Text, as_text, load_text

from .base import Episodes, TaskFamily
from .cactus import CACTUs, partition
from .class_episodes import ClassEpisodes
from .few_shot import FewShot
from .glyphs import Glyphs, draw_glyphs
from .pretexts import PRETEXTS, Pretext, SelfSupervised
from .series import Forecast
from .sinusoid import Sinusoid
from .text import MaskedText
from .umtra import UMTRA

__all__ = [
    "PRETEXTS",
    "UMTRA",
    "CACTUs",
    "Characters",
    "ClassEpisodes",
    "ClassTable",
    "Episodes",
    "FewShot",
    "Forecast",
    "Glyphs",
    "Images",
    "MaskedText",
    "Pretext",
    "Run",
    "SelfSupervised",
    "Series",
    "Sinusoid",
    "TaskFamily",
    "Text",
    "as_images",
    "as_series",
    "as_text",
    "draw_glyphs",
    "draw_waves",
    "load_cifar10",
    "load_images",
    "load_omniglot",
    "load_runs",
    "load_series",
    "load_text",
    "partition",
    "stack_runs",
]
