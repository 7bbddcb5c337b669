"""Sinusoid regression (Finn, Abbeel, Levine 2017, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn import functional as F

from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks import Episodes, Sinusoid, TaskFamily
from fastmeta.train.scores.evaluate import TEST_SEED
from fastmeta.train.scores.plots import plot_sinusoids

from .base import Family, PresetSettings
from .settings import TaskSettings, network


@dataclass(frozen=True, kw_only=True)
class SinusoidSettings(TaskSettings):
    """Settings of `sinusoid`."""

    task: ClassVar[str] = "sinusoid"
    models: ClassVar[tuple[str, ...]] = ("sinusoid-mlp",)

    model: str = network("sinusoid-mlp")


class SinusoidFamily(Family[SinusoidSettings, None]):
    """Sine curves, which need no data."""

    def load(self, settings: SinusoidSettings, paths: Sequence[str]) -> None:
        """Nothing."""

    def shape(self, settings: SinusoidSettings, source: None) -> tuple[int, ...]:
        """Nothing that its network must know."""
        return ()

    def train(self, settings: SinusoidSettings, source: None, device: torch.device) -> Sinusoid:
        """Curves."""
        return Sinusoid(shots=settings.shots, queries=settings.queries, device=device)

    def tests(self, settings: SinusoidSettings, source: None, device: torch.device) -> dict[str, TaskFamily]:
        """The same: no two curves are alike."""
        return {"new sinusoids": self.train(settings, source, device)}

    def example(self, settings: SinusoidSettings, device: torch.device) -> Episodes:
        """Two curves."""
        return self.train(settings, None, device).sample(2, torch.Generator(device))

    def describe(self, source: None) -> str:
        """What they are called."""
        return "sinusoids"

    def draw(self, learner: MetaLearner, tasks: TaskFamily, path: Path, steps: Sequence[int]) -> None:
        """Four curves and how the network fits them."""
        assert isinstance(tasks, Sinusoid)
        plot_sinusoids(learner, tasks, path, steps=tuple(steps), seed=TEST_SEED)


SINUSOID = SinusoidFamily(
    settings_type=SinusoidSettings,
    source_type=type(None),
    summary="sine curves of random amplitude and phase (Finn et al. 2017)",
    loss=F.mse_loss,
    evaluation="trained network",
    picture="sinusoids.png",
    presets={
        "sinusoid": PresetSettings(
            {
                "inner_lr": 0.01,
                "inner_steps": 1,
                "iterations": 10_000,
                "meta_batch": 25,
                "outer_lr": 1e-3,
                "schedule": "cosine",
                "eval_steps": 10,
            },
            "Finn, Abbeel, Levine 2017, section 5.1: K = 10, one step of 0.01. The paper trains for 70,000 "
            "iterations at a constant outer step size; here a cosine schedule ends after fewer.",
        )
    },
)
