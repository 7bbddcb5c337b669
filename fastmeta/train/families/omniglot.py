"""Few-shot classification of Omniglot's handwritten characters.

cbfinn/maml sums the loss over a task's N samples and divides by the number of shots, so that its gradient is
`ways` times the one of a mean; fastmeta, like PyTorch, takes the mean. Its inner learning rate is therefore
multiplied by the number of ways here: 0.4 becomes 2.0 for 5 ways, and 0.1 becomes 2.0 for 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fastmeta.tasks import Characters, ClassTable, Episodes, FewShot, TaskFamily, load_omniglot
from fastmeta.tasks.few_shot import character_table
from fastmeta.tasks.omniglot_splits import SPLITS, split_omniglot

from .base import Family, PresetSettings, random_images
from .settings import AugmentedClasses, ClassifierSettings, TrainShots, Varied


@dataclass(frozen=True, kw_only=True)
class OmniglotSettings(ClassifierSettings, Varied, TrainShots, AugmentedClasses):
    """Settings of `omniglot`."""

    task: ClassVar[str] = "omniglot"

    within_alphabet: bool = field(default=False, metadata={"help": "all classes of a task of one alphabet"})
    rotations: bool = field(default=False, metadata={"help": "train on characters turned by 90, 180, 270° too"})
    mirrored: bool = field(default=False, metadata={"help": "train on mirrored characters too"})
    alphabets: tuple[str, ...] = field(default=(), metadata={"help": "use these alphabets only"})
    exclude_alphabets: tuple[str, ...] = field(default=(), metadata={"help": "leave these alphabets out"})

    split: str | None = field(
        default=None,
        metadata={
            "help": "finn: 1,200 and 423 random characters; alphabets: background and evaluation; default: none",
            "automatic": True,
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split is not None and self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.split is not None and (self.alphabets or self.exclude_alphabets):
            raise ValueError(f"split {self.split} is of all alphabets; leave alphabets and exclude_alphabets out")

    @property
    def size(self) -> str:
        """A task's samples in words."""
        return super().size + (" within an alphabet" if self.within_alphabet else "")


class OmniglotFamily(Family[OmniglotSettings, Characters]):
    """Characters."""

    def load(self, settings: OmniglotSettings, paths: Sequence[str]) -> Characters:
        """The alphabets that the run asks for."""
        return load_omniglot(paths).select(keep=settings.alphabets, drop=settings.exclude_alphabets)

    def shape(self, settings: OmniglotSettings, source: Characters) -> tuple[int, ...]:
        """Of all drawings."""
        return (1, 28, 28)

    def usual_shape(self, settings: OmniglotSettings) -> tuple[int, ...]:
        """The same without data."""
        return (1, 28, 28)

    def train(self, settings: OmniglotSettings, source: Characters, device: torch.device) -> TaskFamily:
        """Characters turned, mirrored and distorted as the run says; those to train on, where there is a split."""
        source = source if settings.split is None else split_omniglot(source, settings.split).train
        if settings.varied:
            table = _table(settings, source, device, rotations=settings.rotations, mirrored=settings.mirrored)
            return settings.varied_episodes(
                table, device, augment=settings.augment, augment_classes=settings.augment_classes
            )
        return FewShot(
            source,
            ways=settings.ways,
            shots=settings.training_shots,
            queries=settings.queries,
            within_alphabet=settings.within_alphabet,
            rotations=settings.rotations,
            mirrored=settings.mirrored,
            augment=settings.augment,
            augment_classes=settings.augment_classes,
            device=device,
        )

    def tests(self, settings: OmniglotSettings, source: Characters, device: torch.device) -> dict[str, TaskFamily]:
        """Characters as they are; of a split those to test on, and those to validate on."""
        if settings.split is not None:
            parts = split_omniglot(source, settings.split)
            unseen = {"episodes of the test characters": parts.test}
            if parts.validation is not None:
                unseen["episodes of the validation characters"] = parts.validation
            return {title: self._upright(settings, part, device) for title, part in unseen.items()}
        return {"new episodes of the characters trained on": self._upright(settings, source, device)}

    @staticmethod
    def _upright(settings: OmniglotSettings, source: Characters, device: torch.device) -> TaskFamily:
        """Neither turned nor distorted."""
        if settings.varied:
            return settings.varied_episodes(_table(settings, source, device), device)
        return FewShot(
            source,
            ways=settings.ways,
            shots=settings.shots,
            queries=settings.queries,
            within_alphabet=settings.within_alphabet,
            device=device,
        )

    def example(self, settings: OmniglotSettings, device: torch.device) -> Episodes:
        """Random images."""
        return random_images(settings.ways, settings.training_shots, settings.queries, settings.shape, device)


def _table(
    settings: OmniglotSettings, source: Characters, device: torch.device, *, rotations: bool = False,
    mirrored: bool = False,
) -> ClassTable:  # fmt: skip
    fewest = settings.ways if settings.fewest_ways is None else settings.fewest_ways
    return character_table(
        source, ways=fewest, within_alphabet=settings.within_alphabet, rotations=rotations, mirrored=mirrored,
        device=device,
    )  # fmt: skip


_FEW_SHOT = {"ways": 5, "shots": 1, "rotations": True}

_MAML_5W1S = {
    **_FEW_SHOT,
    "queries": 1,
    "inner_lr": 2.0,
    "inner_steps": 1,
    "iterations": 60_000,
    "meta_batch": 32,
    "eval_steps": 10,
}

OMNIGLOT = OmniglotFamily(
    settings_type=OmniglotSettings,
    source_type=Characters,
    summary="few-shot classification of handwritten characters (Lake et al. 2015)",
    data="Omniglot's zip files, or folders they unpack to",
    data_optional=False,
    batch_norm=True,
    official_runs=True,
    evaluation="trained network",
    presets={
        "omniglot": PresetSettings(
            {
                **_FEW_SHOT,
                "queries": 5,
                "inner_lr": 0.4,
                "inner_steps": 3,
                "iterations": 5_000,
                "meta_batch": 8,
                "schedule": "cosine",
            },
            "fastmeta's own, for a first look in minutes; no published figure.",
        ),
        "within-20w1s": PresetSettings(
            {
                "model": "conv4-flat",
                "zero_head": True,
                "ways": 20,
                "shots": 1,
                "queries": 2,
                "within_alphabet": True,
                "rotations": True,
                "mirrored": True,
                "augment": 1.0,
                "augment_classes": 1.0,
                "inner_lr": 0.2,
                "inner_steps": 3,
                "iterations": 5_000,
                "meta_batch": 8,
                "outer_lr": 2e-3,
                "schedule": "cosine",
                "grad_clip": 10.0,
                "eval_steps": 10,
            },
            "fastmeta's own, for the Omniglot challenge with few alphabets (Lake et al. 2015: 20 ways within an "
            "alphabet): turned and mirrored alphabets, distorted classes and images make up for what is missing. "
            "Settings chosen on Sanskrit, left out of small2.",
        ),
        "maml-5w1s": PresetSettings(
            _MAML_5W1S,
            "cbfinn/maml, main.py: 5 ways, 1 shot, meta-batch 32, 60,000 iterations, one step of 0.4 (2.0 here, "
            "where a loss is a mean), strided convolutions, 10 steps in evaluation.",
        ),
        "maml-5w1s-finn": PresetSettings(
            {**_MAML_5W1S, "split": "finn"},
            "cbfinn/maml, main.py, as maml-5w1s: trained on 1,100 of 1,200 random characters and their turns, 100 to "
            "validate on, 423 to test on. --data names both of Omniglot's zip files.",
        ),
        "maml-5w1s-alphabets": PresetSettings(
            {**_MAML_5W1S, "split": "alphabets"},
            "Lake et al. 2015 for the split, cbfinn/maml for the rest, as maml-5w1s: trained on the 30 background "
            "alphabets, tested on the 20 evaluation alphabets. --data names both of Omniglot's zip files.",
        ),
        "maml-20w1s": PresetSettings(
            {
                **_FEW_SHOT,
                "ways": 20,
                "queries": 1,
                "inner_lr": 2.0,
                "inner_steps": 5,
                "iterations": 60_000,
                "meta_batch": 16,
                "eval_steps": 10,
            },
            "cbfinn/maml, main.py: 20 ways, 1 shot, meta-batch 16, 60,000 iterations, five steps of 0.1 (2.0 "
            "here, where a loss is a mean), strided convolutions, 10 steps in evaluation.",
        ),
        "reptile-5w1s": PresetSettings(
            {
                **_FEW_SHOT,
                "train_shots": 10,
                "queries": 1,
                "algorithm": "reptile",
                "inner_optimizer": "adam",
                "inner_lr": 1e-3,
                "inner_beta1": 0.0,
                "inner_steps": 5,
                "inner_batch_size": 10,
                "iterations": 100_000,
                "meta_batch": 5,
                "outer_optimizer": "sgd",
                "outer_lr": 1.0,
                "schedule": "linear",
                "eval_steps": 50,
            },
            "openai/supervised-reptile, README: 10 shots in training, five inner steps of Adam (1e-3, beta1 = 0) "
            "on batches of 10, meta-batch 5, outer step size 1 to 0 over 100,000 iterations, 50 steps in "
            "evaluation. There Adam's second moments run on from task to task, and the head sees the flattened "
            "map; here they start anew in every task, and the head sees its mean.",
        ),
    },
)
