"""Settings of task families."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastmeta.models import MODELS
from fastmeta.tasks import PRETEXTS
from fastmeta.train.run_config import check_fields

from .registry import FAMILIES


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is learned, and by which network. `Family.settings` says which of these a family reads."""

    task: str = field(default="sinusoid", metadata={"choices": tuple(FAMILIES), "flag": False})
    model: str = field(default="sinusoid-mlp", metadata={"help": "network", "choices": tuple(MODELS)})
    channels: int = field(default=64, metadata={"help": "filters of each convolution"})
    width: int = field(default=64, metadata={"help": "hidden units of a forecaster or transformer"})
    latent: int = field(default=16, metadata={"help": "dimensions of an autoencoder's code"})
    zero_head: bool = field(default=False, metadata={"help": "start a classifier's last layer at zero"})
    ways: int = field(default=5, metadata={"help": "classes of a task"})
    shots: int = field(default=10, metadata={"help": "support samples of a task, per class where there are classes"})
    train_shots: int = field(default=0, metadata={"help": "while training; 0: as --shots"})
    queries: int = field(default=10, metadata={"help": "query samples of a task, per class where there are classes"})
    within_alphabet: bool = field(default=False, metadata={"help": "all classes of a task of one alphabet"})
    rotations: bool = field(default=False, metadata={"help": "train on characters turned by 90, 180, 270° too"})
    mirrored: bool = field(default=False, metadata={"help": "train on mirrored characters too"})
    augment: float = field(default=0.0, metadata={"help": "random distortion of every training image; 1 is usual"})
    augment_classes: float = field(
        default=0.0, metadata={"help": "and one that a training class's images share; 1 is usual"}
    )
    alphabets: tuple[str, ...] = field(default=(), metadata={"help": "use these alphabets only"})
    exclude_alphabets: tuple[str, ...] = field(default=(), metadata={"help": "leave these alphabets out"})
    image_size: int = field(default=0, metadata={"help": "side of the images in pixels; 0: as they are"})
    held_out: float = field(
        default=0.2, metadata={"help": "share of classes, images, groups or text kept for evaluation; 0: none"}
    )
    clusters: int = field(default=0, metadata={"help": "of a partition; 0: one for 20 images"})
    partitions: int = field(default=10, metadata={"help": "of the images into clusters"})
    embedding: str = field(default="", metadata={"help": "a .npy file [images, d] to cluster, instead of a code"})
    pretexts: tuple[str, ...] = field(
        default=("patches", "tiles", "zoom"),
        metadata={"help": f"out of {', '.join(PRETEXTS)}; pre-training: the first"},
    )
    new_pretext: str = field(default="rotation", metadata={"help": "to be evaluated on", "choices": tuple(PRETEXTS)})
    window: int = field(default=8, metadata={"help": "steps that a forecast sees"})
    horizon: int = field(default=1, metadata={"help": "steps that it tells"})
    group: str = field(
        default="character", metadata={"help": "of pen strokes, a task", "choices": ("character", "writer")}
    )
    length: int = field(default=32, metadata={"help": "characters of a window of text"})
    passage: int = field(default=1000, metadata={"help": "characters of a passage, a task"})
    masked: float = field(default=0.15, metadata={"help": "share of a window's characters that is hidden"})
    shape: tuple[int, ...] = field(default=(), metadata={"flag": False})
    vocabulary: str = field(default="", metadata={"flag": False})

    def __post_init__(self) -> None:
        check_fields(self)
        if self.model not in FAMILIES[self.task].models:
            raise ValueError(
                f"model {self.model} does not fit task {self.task}; leave --model out, or take one of "
                f"{', '.join(FAMILIES[self.task].models)}"
            )
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out!r}")
