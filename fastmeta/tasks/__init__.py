"""Families of tasks, and the samplers that draw meta-batches of episodes from them."""

from __future__ import annotations

from .base import Episodes, TaskFamily
from .cactus import CACTUs, partition
from .cifar import load_cifar10
from .class_table import ClassEpisodes, ClassTable
from .few_shot import FewShot
from .glyphs import Glyphs, draw_glyphs
from .images import Images, as_images, load_images
from .omniglot import Characters, load_omniglot
from .one_shot_runs import Run, load_runs, stack_runs
from .pretexts import PRETEXTS, Pretext, SelfSupervised
from .series import Forecast, Series, as_series, draw_waves, load_series
from .sinusoid import Sinusoid
from .text import MaskedText, Text, as_text, load_text
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
