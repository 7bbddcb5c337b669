"""Settings that several task families share; each family adds its own in its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastmeta.models import MODELS
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
    shots: int = field(default=10, metadata={"help": "support samples of a task, per class where there are classes"})
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
    ways: int = field(default=5, metadata={"help": "classes of a task"})

    @property
    def size(self) -> str:
        """A task's samples in words."""
        return f"{self.ways}-way {self.shots}-shot"


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(ClassSettings):
    """Few-shot classification of images."""

    models: ClassVar[tuple[str, ...]] = ("conv4", "conv4-flat", "conv4-pooled", "resnet18")

    model: str = network("conv4")
    zero_head: bool = field(default=False, metadata={"help": "start a classifier's last layer at zero"})

    @property
    def head_starts_at_zero(self) -> bool:
        """Whether the network ends in a linear layer whose weights start at zero."""
        return self.zero_head


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
