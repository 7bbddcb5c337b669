"""Families of tasks, and the samplers that draw meta-batches of episodes from them."""

from __future__ import annotations

from fastmeta.tasks.base import Episodes, TaskFamily
from fastmeta.tasks.few_shot import FewShot
from fastmeta.tasks.omniglot import Characters, load_omniglot
from fastmeta.tasks.one_shot_runs import Run, load_runs, stack_runs
from fastmeta.tasks.sinusoid import Sinusoid

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
