"""Settings that several task families share; each family adds its own in its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from fastmeta.models import MODELS
from fastmeta.tasks import ClassEpisodes, ClassTable, VariedEpisodes
from fastmeta.tasks.base import check_count
from fastmeta.train.run_config import check_fields


def network(default: str) -> Any:
    """The field `model` of a family whose first choice is `default`."""
    return field(default=default, metadata={"help": "network", "choices": tuple(MODELS)})


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What every family reads. A family's settings are a subclass of this and of the parts below that it needs.

    Attributes:
        task: the family's name.
        models: networks that fit it.
        shape: of the data, as `build_model` takes it; () until the data are known.
    """

    task: ClassVar[str]
    models: ClassVar[tuple[str, ...]]

    model: str = network("")
    shots: int = field(
        default=10,
        metadata={"help": "support samples of a task, per class where there are classes", "fewest": "fewest_shots"},
    )
    queries: int = field(default=10, metadata={"help": "query samples of a task, per class where there are classes"})
    shape: tuple[int, ...] = field(default=(), metadata={"flag": False})

    def __post_init__(self) -> None:
        check_fields(self)
        if self.model not in self.models:
            raise ValueError(
                f"model {self.model} does not fit task {self.task}; leave --model out, or take one of "
                f"{', '.join(self.models)}"
            )

    @property
    def training_shots(self) -> int:
        """Support samples while training."""
        return self.shots

    @property
    def head_starts_at_zero(self) -> bool:
        """Whether the network ends in a linear layer whose weights start at zero."""
        return False

    @property
    def size(self) -> str:
        """A task's samples in words."""
        return f"{self.shots}-shot"


@dataclass(frozen=True, kw_only=True)
class ClassSettings(TaskSettings):
    """Tasks of classes of images."""

    channels: int = field(default=64, metadata={"help": "filters of each convolution"})
    ways: int = field(default=5, metadata={"help": "classes of a task", "fewest": "fewest_ways"})

    def episodes(self, table: ClassTable, device: torch.device, *, shots: int | None = None) -> ClassEpisodes:
        """Tasks of the classes of a table, its images as they are; `shots` of None are those that are scored on."""
        shots = self.shots if shots is None else shots
        return ClassEpisodes(table, ways=self.ways, shots=shots, queries=self.queries, device=device)

    @property
    def size(self) -> str:
        """A task's samples in words."""
        return f"{self.ways}-way {self.shots}-shot"


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(ClassSettings):
    """Few-shot classification of images."""

    models: ClassVar[tuple[str, ...]] = ("conv4", "conv4-flat", "conv4-pooled", "conv4-padded", "resnet18")

    model: str = network("conv4")
    zero_head: bool = field(default=False, metadata={"help": "start a classifier's last layer at zero"})

    @property
    def head_starts_at_zero(self) -> bool:
        """Whether the network ends in a linear layer whose weights start at zero."""
        return self.zero_head


@dataclass(frozen=True, kw_only=True)
class Varied(ClassSettings):
    """Tasks whose ways and shots may differ, up to `ways` and `shots`."""

    fewest_ways: int | None = field(default=None, metadata={"flag": False, "automatic": True})
    fewest_shots: int | None = field(default=None, metadata={"flag": False, "automatic": True})
    imbalance: float | None = field(
        default=None,
        metadata={
            "help": "how uneven the classes of a task are in support samples; 0: all even, 2: as in Meta-Dataset",
            "automatic": True,
        },
    )
    support_limit: int | None = field(
        default=None, metadata={"help": "most support samples of tasks whose sizes vary; 0: none", "automatic": True}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.support_limit is not None and not self.varied:
            raise ValueError(
                "support_limit is for tasks whose sizes vary; ask for a range of ways or shots (--shots 1:10), or "
                "leave it out"
            )

    @property
    def varied(self) -> bool:
        """Whether tasks differ in size, so that they are padded."""
        return self.fewest_ways is not None or self.fewest_shots is not None or self.imbalance is not None

    def varied_episodes(
        self, table: ClassTable, device: torch.device, *, augment: float = 0.0, augment_classes: float = 0.0
    ) -> VariedEpisodes:
        """Tasks of these sizes, of the classes of a table."""
        return VariedEpisodes(
            table,
            ways=(self.ways if self.fewest_ways is None else self.fewest_ways, self.ways),
            shots=(self.shots if self.fewest_shots is None else self.fewest_shots, self.shots),
            queries=self.queries,
            imbalance=1.0 if self.imbalance is None else self.imbalance,
            support_limit=self.support_limit,
            device=device,
            augment=augment,
            augment_classes=augment_classes,
        )

    @property
    def size(self) -> str:
        """A task's samples in words."""
        ways, shots = (
            str(most) if fewest is None else f"{fewest}:{most}"
            for fewest, most in ((self.fewest_ways, self.ways), (self.fewest_shots, self.shots))
        )
        uneven = f", imbalance {self.imbalance:g}" if self.imbalance is not None else ""
        return f"{ways}-way {shots}-shot{uneven}"


@dataclass(frozen=True, kw_only=True)
class TrainShots(TaskSettings):
    """Another number of support samples while training."""

    train_shots: int | None = field(
        default=None, metadata={"help": "support samples while training; 0: as --shots", "automatic": True}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_shots is not None:
            check_count("train_shots", self.train_shots)

    @property
    def training_shots(self) -> int:
        """Support samples while training."""
        return self.shots if self.train_shots is None else self.train_shots


@dataclass(frozen=True, kw_only=True)
class Augmented(TaskSettings):
    """Distorted images."""

    augment: float = field(default=0.0, metadata={"help": "random distortion of every training image; 1 is usual"})


@dataclass(frozen=True, kw_only=True)
class AugmentedClasses(Augmented):
    """Distorted images and classes."""

    augment_classes: float = field(
        default=0.0, metadata={"help": "and a distortion that a training class's images share; 1 is usual"}
    )


@dataclass(frozen=True, kw_only=True)
class ImageSize(TaskSettings):
    """Images of a size that can be chosen."""

    image_size: int | None = field(
        default=None, metadata={"help": "side of the images in pixels; 0: as they are", "automatic": True}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None:
            check_count("image_size", self.image_size)


@dataclass(frozen=True, kw_only=True)
class HeldOut(TaskSettings):
    """A share of the data that is kept for evaluation."""

    held_out: float = field(
        default=0.2, metadata={"help": "share of classes, images, groups or text kept for evaluation; 0: none"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out!r}")


@dataclass(frozen=True, kw_only=True)
class Latent(TaskSettings):
    """A code of a few numbers."""

    latent: int = field(default=16, metadata={"help": "dimensions of an autoencoder's code, or of an image's"})


@dataclass(frozen=True, kw_only=True)
class Width(TaskSettings):
    """A forecaster, transformer or SIREN."""

    width: int = field(default=64, metadata={"help": "hidden units of a forecaster, transformer or SIREN"})
