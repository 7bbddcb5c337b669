"""Pictures as functions of the place: a latent code for each, one network for all (functa, COIN++)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks import Episodes, Images, Pixels, TaskFamily, draw_glyphs, load_images
from fastmeta.tasks.base import check_count
from fastmeta.train.scores.evaluate import TEST_SEED
from fastmeta.train.scores.plots import plot_reconstructions

from .base import Family, PresetSettings
from .images import IMAGE_DATA
from .settings import HeldOut, ImageSize, Latent, Width, network


@dataclass(frozen=True, kw_only=True)
class InrSettings(ImageSize, HeldOut, Latent, Width):
    """Settings of `inr`; `shots` and `queries` are pixels, and as many as an image has, or more, are all of them."""

    task: ClassVar[str] = "inr"
    models: ClassVar[tuple[str, ...]] = ("modulated-siren",)

    model: str = network("modulated-siren")
    depth: int = field(default=5, metadata={"help": "hidden layers of a SIREN"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("depth", self.depth)

    @property
    def size(self) -> str:
        """A task's samples in words."""
        return f"latent {self.latent}"


class InrFamily(Family[InrSettings, Images]):
    """Images, each a task."""

    def load(self, settings: InrSettings, paths: Sequence[str]) -> Images:
        """The images; glyphs without paths."""
        size = settings.image_size or (settings.shape[1] if settings.shape else None)
        return load_images(paths, size=size) if paths else draw_glyphs(size=size or 28)

    def shape(self, settings: InrSettings, source: Images) -> tuple[int, ...]:
        """(channels, H, W)."""
        return source.shape

    def usual_shape(self, settings: InrSettings) -> tuple[int, ...]:
        """Of glyphs."""
        return (1, settings.image_size or 28, settings.image_size or 28)

    def train(self, settings: InrSettings, source: Images, device: torch.device) -> Pixels:
        """Images to learn from."""
        images = source.split(settings.held_out)[0] if settings.held_out or source.part is not None else source
        return self._pixels(settings, images, device, settings.queries)

    def tests(self, settings: InrSettings, source: Images, device: torch.device) -> dict[str, TaskFamily]:
        """Images that training has not seen, scored on all pixels."""
        unseen = source.split(settings.held_out)[1] if settings.held_out or source.part is not None else source
        return {"unseen images": self._pixels(settings, unseen, device, None)}

    def example(self, settings: InrSettings, device: torch.device) -> Episodes:
        """Two images of random numbers."""
        images = Images(torch.randint(256, (2, *settings.shape), dtype=torch.uint8), None)
        return self._pixels(settings, images, device, settings.queries).sample(2, torch.Generator(device))

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Peak signal-to-noise ratio in decibels, −10 log₁₀ of the mean squared error of values in [0, 1]."""
        return -10 * (outputs - targets).square().flatten(1).mean(1).log10()

    @property
    def metric(self) -> str:
        """What its score is."""
        return "PSNR in dB"

    def draw(self, learner: MetaLearner, tasks: TaskFamily, path: Path, steps: Sequence[int]) -> None:
        """Eight images above what the network makes of them."""
        assert isinstance(tasks, Pixels)
        plot_reconstructions(learner, tasks, path, steps=(0, *steps), seed=TEST_SEED)

    @staticmethod
    def _pixels(settings: InrSettings, images: Images, device: torch.device, queries: int | None) -> Pixels:
        every = images.shape[1] * images.shape[2]
        shots = settings.shots if settings.shots < every else None
        return Pixels(
            images, shots=shots, queries=None if queries is None or queries >= every else queries, device=device
        )


INR = InrFamily(
    settings_type=InrSettings,
    source_type=Images,
    summary="images as functions of the place, a latent code for each (Dupont et al. 2022: functa, COIN++)",
    data=IMAGE_DATA,
    loss=F.mse_loss,
    evaluation="trained network",
    picture="reconstructions.png",
    scored_after=(1, 3, 10),
    worst=0.0,
    presets={
        "inr": PresetSettings(
            {
                "algorithm": "cavia",
                "latent": 128,
                "width": 64,
                "depth": 4,
                "shots": 1024,
                "queries": 1024,
                "inner_lr": 1.0,
                "inner_steps": 3,
                "iterations": 5_000,
                "meta_batch": 8,
                "outer_lr": 5e-4,
                "schedule": "cosine",
                "eval_steps": 10,
                "episodes": 400,
            },
            "functa and COIN++, scaled to a CPU: 3 inner steps on the latent alone with the exact meta-gradient, as "
            "both; functa has width 512, depth 10 to 15, latent 512, learned step sizes and an outer Adam of 3e-6.",
        )
    },
)
