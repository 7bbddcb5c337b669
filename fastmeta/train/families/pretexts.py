"""Which transformation was applied to an image? Self-supervised tasks, see `fastmeta.tasks.pretexts`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from fastmeta.tasks import PRETEXTS, Images, SelfSupervised, TaskFamily
from fastmeta.tasks.base import split_count

from .base import PresetSettings
from .held_out import check_left
from .images import IMAGE_DATA, ImageFamily, ImageSettings, split_by_image
from .settings import Augmented, ClassifierSettings, TrainShots


@dataclass(frozen=True, kw_only=True)
class PretextSettings(ClassifierSettings, TrainShots, Augmented, ImageSettings):
    """Settings of `ssl-images`."""

    task: ClassVar[str] = "ssl-images"

    pretexts: tuple[str, ...] = field(
        default=("patches", "tiles", "zoom"),
        metadata={"help": f"pretexts out of {', '.join(PRETEXTS)}; pre-training: the first"},
    )
    new_pretext: str = field(
        default="rotation",
        metadata={"help": "pretext that is evaluated, and not trained on", "choices": tuple(PRETEXTS)},
    )


class PretextFamily(ImageFamily[PretextSettings]):
    """Transformations as classes."""

    def train(self, settings: PretextSettings, source: Images, device: torch.device) -> SelfSupervised:
        """Tasks of the run's pretexts."""
        images, _ = split_by_image(settings, source)
        return SelfSupervised(
            images,
            settings.pretexts,
            ways=settings.ways,
            shots=settings.training_shots,
            queries=settings.queries,
            augment=settings.augment,
            device=device,
        )

    def pretrain(self, settings: PretextSettings, source: Images, device: torch.device) -> SelfSupervised:
        """One pretext, whose transformations keep their numbers from task to task."""
        images, _ = split_by_image(settings, source)
        return SelfSupervised(
            images,
            settings.pretexts[:1],
            ways=settings.ways,
            shots=settings.shots,
            queries=settings.queries,
            shuffle=False,
            augment=settings.augment,
            device=device,
        )

    def tests(self, settings: PretextSettings, source: Images, device: torch.device) -> dict[str, TaskFamily]:
        """The pretexts trained on, another one, and labels where each class has images enough."""
        ways, shots, queries = settings.ways, settings.shots, settings.queries
        self._check(settings, source)
        _, unseen = split_by_image(settings, source)
        tests: dict[str, TaskFamily] = {
            f"{title}, {settings.size}": SelfSupervised(
                unseen, names, ways=ways, shots=shots, queries=queries, device=device
            )
            for title, names in (
                ("pretexts trained on", settings.pretexts),
                (f"new pretext {settings.new_pretext}", (settings.new_pretext,)),
            )
        }
        labelled = _of_large_classes(unseen, shots + queries)
        if labelled.labels is not None and len(labelled.labels.unique()) >= ways:
            tests[f"labels, {settings.size}"] = settings.episodes(labelled.table(), device)
        return tests

    def probe(self, settings: PretextSettings, source: Images) -> tuple[Images, Images] | None:
        """Halves where the run has seen none of the images."""
        if source.labels is None:
            return None
        if source.part is None:
            return source.split(settings.held_out or 0.5)
        unseen = replace(split_by_image(settings, source)[1], part=None)  # whose classes the other part may lack
        return unseen.split(0.5)

    @staticmethod
    def _check(settings: PretextSettings, source: Images) -> None:
        if source.part is not None:
            return  # nothing is kept apart that the data does not keep apart itself
        count, ways = len(source), settings.ways

        def counts(held_out: float) -> tuple[int, int]:
            first = split_count(count, held_out)
            return first, count - first

        check_left(
            settings.held_out,
            kind="images",
            counts=counts,
            train=ways * (settings.training_shots + settings.queries),
            test=ways * (settings.shots + settings.queries),
            reason=f"{ways} ways of {settings.shots} shots and {settings.queries} queries",
            remedy="ask for fewer ways, shots or queries, or give more images",
        )


def _of_large_classes(images: Images, least: int) -> Images:
    """The images of classes that have at least so many: of twenty drawings a character few are kept for evaluation."""
    if images.labels is None:
        return images
    classes, counts = images.labels.unique(return_counts=True)
    return images.take(torch.isin(images.labels, classes[counts >= least]).nonzero().squeeze(1))


_SMALL = {
    "model": "resnet18",
    "channels": 8,
    "zero_head": True,
    "ways": 4,
    "shots": 5,
    "queries": 5,
    "augment": 0.5,
    "inner_lr": 0.4,
    "inner_steps": 1,
    "iterations": 600,
    "meta_batch": 4,
    "schedule": "cosine",
    "grad_clip": 10.0,
    "pretrain_iterations": 1_000,
    "from_pretrained": True,
    "eval_steps": 20,
    "episodes": 40,
}

SSL_IMAGES = PretextFamily(
    settings_type=PretextSettings,
    source_type=Images,
    summary="which transformation was applied: rotation, patch position, order of tiles or colours, zoom",
    data=IMAGE_DATA,
    batch_norm=True,
    presets={
        "ssl-images": PresetSettings(
            _SMALL,
            "fastmeta's own: pre-training on one pretext, MAML on several; ResNet-18 with an eighth of its filters.",
        ),
        "ssl-images-reptile": PresetSettings(
            {
                **_SMALL,
                "channels": 64,
                "queries": 1,
                "algorithm": "reptile",
                "inner_optimizer": "adam",
                "inner_lr": 1e-3,
                "inner_beta1": 0.9,
                "inner_steps": 5,
                "train_shots": 16,
                "inner_batch_size": 32,
                "meta_batch": 32,
                "grad_clip": 0.0,
                "iterations": 10_000,
                "pretrain_iterations": 20_000,
                "episodes": 600,
            },
            "fastmeta's own, for a GPU: the whole ResNet-18, Reptile with five steps of Adam, 32 tasks a meta-step; "
            "not measured.",
        ),
    },
)
