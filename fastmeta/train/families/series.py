"""Forecasting of pen strokes or any series; a task is a group of series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.nn import functional as F

from fastmeta.tasks import Episodes, Forecast, Series, TaskFamily, draw_waves, load_series

from .base import Family, PresetSettings
from .settings import HeldOut, Width, network


@dataclass(frozen=True, kw_only=True)
class SeriesSettings(Width, HeldOut):
    """Settings of `ssl-series`."""

    task: ClassVar[str] = "ssl-series"
    models: ClassVar[tuple[str, ...]] = ("forecast-mlp", "forecast-lstm")

    model: str = network("forecast-mlp")
    window: int = field(default=8, metadata={"help": "steps that a forecast takes"})
    horizon: int = field(default=1, metadata={"help": "steps that it predicts"})
    group: str = field(
        default="character",
        metadata={
            "help": "pen strokes of a task: those of one character, or of one writer",
            "choices": ("character", "writer"),
        },
    )


class SeriesFamily(Family[SeriesSettings, Series]):
    """Windows of series."""

    def load(self, settings: SeriesSettings, paths: Sequence[str]) -> Series:
        """The series; waves without paths."""
        return load_series(paths, group=settings.group) if paths else draw_waves()

    def shape(self, settings: SeriesSettings, source: Series) -> tuple[int, ...]:
        """(window, horizon, features)."""
        return settings.window, settings.horizon, source.features

    def train(self, settings: SeriesSettings, source: Series, device: torch.device) -> Forecast:
        """The first groups."""
        return self._forecast(settings, source.split(settings.held_out)[0] if settings.held_out else source, device)

    def pretrain(self, settings: SeriesSettings, source: Series, device: torch.device) -> Forecast:
        """The same: tasks share what their targets mean."""
        return self.train(settings, source, device)

    def tests(self, settings: SeriesSettings, source: Series, device: torch.device) -> dict[str, TaskFamily]:
        """The last groups."""
        unseen = source.split(settings.held_out)[1] if settings.held_out else source
        return {"unseen groups": self._forecast(settings, unseen, device)}

    def example(self, settings: SeriesSettings, device: torch.device) -> Episodes:
        """Random numbers."""
        window, horizon, features = settings.shape
        n, samples = settings.shots, settings.shots + settings.queries
        x, y = (torch.rand(2, samples, steps, features, device=device) for steps in (window, horizon))
        return Episodes(x[:, :n], y[:, :n], x[:, n:], y[:, n:])

    @staticmethod
    def _forecast(settings: SeriesSettings, series: Series, device: torch.device) -> Forecast:
        return Forecast(
            series,
            window=settings.window,
            horizon=settings.horizon,
            shots=settings.shots,
            queries=settings.queries,
            device=device,
        )


SSL_SERIES = SeriesFamily(
    settings_type=SeriesSettings,
    source_type=Series,
    summary="forecasting the next step of pen strokes or any series; a task is a character, writer or series",
    data="Omniglot's strokes_background zip or folder, .csv or .npy files; none: random waves",
    loss=F.mse_loss,
    presets={
        "ssl-series": PresetSettings(
            {
                "shots": 20,
                "queries": 20,
                "inner_lr": 0.05,
                "inner_steps": 5,
                "iterations": 5_000,
                "meta_batch": 16,
                "schedule": "cosine",
                "grad_clip": 10.0,
                "pretrain_iterations": 30_000,
                "eval_steps": 20,
                "episodes": 400,
            },
            "fastmeta's own: pre-training takes as many gradients as the inner and outer steps together.",
        )
    },
)
