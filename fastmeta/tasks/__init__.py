"""Families of tasks, and the samplers that draw meta-batches of episodes from them."""

from __future__ import annotations

from .base import Episodes, TaskFamily
from .few_shot import FewShot
from .omniglot import Characters, load_omniglot
from .one_shot_runs import Run, load_runs, stack_runs
from .sinusoid import Sinusoid

__all__ = [
    "Characters",
    "Episodes",
    "FewShot",
    "Run",
    "Sinusoid",
    "TaskFamily",
    "load_omniglot",
    "load_runs",
    "stack_runs",
]
