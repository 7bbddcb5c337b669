"""A whole run as plain settings, from which model, algorithm and task family are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn

from .algorithms import FOMAML, MAML, MetaLearner, Reptile
from .builders import Source
from .families import FAMILIES, Family
from .inner import SGD, Adam
from .models import MODELS, build_model
from .tasks import PRETEXTS, TaskFamily, Text
from .tasks.base import check_count
from .train import Setting, TrainConfig, check_fields

ALGORITHMS: dict[str, type[MetaLearner]] = {"maml": MAML, "fomaml": FOMAML, "reptile": Reptile}


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


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Plain training on the same tasks without an inner loop: what meta-learning is compared with."""

    pretrain_iterations: int = field(
        default=0, metadata={"help": "of plain pre-training, to start from or compare with; 0: none"}
    )
    from_pretrained: bool = field(default=False, metadata={"help": "start meta-training from the pre-trained network"})

    def __post_init__(self) -> None:
        check_count("pretrain_iterations", self.pretrain_iterations, minimum=0)
        if self.from_pretrained and not self.pretrain_iterations:
            raise ValueError("from_pretrained needs pre-training: set pretrain_iterations above 0")


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """How a task is adapted to."""

    algorithm: str = field(default="maml", metadata={"help": "meta-learner", "choices": tuple(ALGORITHMS)})
    inner_optimizer: str = field(
        default="sgd", metadata={"help": "optimiser of the inner loop", "choices": ("sgd", "adam")}
    )
    inner_lr: float = field(default=0.01, metadata={"help": "its step size, for a mean over samples"})
    inner_momentum: float = field(default=0.0, metadata={"help": "SGD's momentum, or Adam's first beta"})
    inner_steps: int = field(default=1, metadata={"help": "inner steps while training"})
    inner_batch_size: int = field(
        default=0, metadata={"help": "support samples of an inner step while training; 0: all"}
    )
    bn_statistics: Literal["batch", "support"] = field(
        default="batch",
        metadata={"help": "whose statistics normalise query samples", "choices": ("batch", "support")},
    )
    precision: Literal["float32", "tf32", "bfloat16"] = field(
        default="float32",
        metadata={"help": "of matrix products", "choices": ("float32", "tf32", "bfloat16")},
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a trained network is scored by default; changes nothing of the training."""

    eval_steps: int = field(default=0, metadata={"help": "inner steps in evaluation; 0: as --inner-steps"})
    episodes: int = field(default=600, metadata={"help": "episodes of the evaluation"})


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how the computation runs: nothing of this changes what is computed beyond rounding."""

    device: str = field(default="auto", metadata={"help": "such as cpu or cuda:0; auto: the GPU if there is one"})
    backend: Literal["auto", "torch", "triton", "reference"] = field(
        default="auto",
        metadata={"help": "implementation", "choices": ("auto", "torch", "triton", "reference")},
    )
    compile: bool = field(default=False, metadata={"help": "send the meta-step through torch.compile"})
    cuda_graph: bool = field(default=False, metadata={"help": "replay the meta-step as one CUDA graph"})
    memory: Literal["save", "recompute"] = field(
        default="save",
        metadata={
            "help": "keep a step's activations or compute them again",
            "choices": ("save", "recompute"),
        },
    )
    task_chunk: int = field(default=0, metadata={"help": "tasks that run at once; 0: automatic"})

    def __post_init__(self) -> None:
        check_fields(self)

    def torch_device(self) -> torch.device:
        """The device.

        Raises:
            ValueError: for a name that torch does not know, or a GPU that is not there.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {self.device!r} cannot be used: {reason}") from error
        return device


PARTS: dict[str, type] = {
    "tasks": TaskConfig,
    "algorithm": AlgorithmConfig,
    "train": TrainConfig,
    "pretraining": PretrainConfig,
    "evaluation": EvaluationConfig,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the numbers of a run."""

    tasks: TaskConfig = field(default_factory=TaskConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pretraining: PretrainConfig = field(default_factory=PretrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def flat(self) -> dict[str, Any]:
        """All settings by name."""
        return {name: value for part in PARTS for name, value in asdict(getattr(self, part)).items()}

    def settings(self) -> dict[str, Setting]:
        """What a `Trainer` takes as `settings`: all but its own configuration."""
        own = {spec.name for spec in fields(TrainConfig)}
        return {name: value for name, value in self.flat().items() if name not in own}

    def replace(self, changes: Mapping[str, Any]) -> RunConfig:
        """The same run with some settings changed, by name.

        Raises:
            ValueError: for a value out of range.
        """
        return from_flat({**self.flat(), **changes})

    def summary(self) -> str:
        """In a few words."""
        ways = f"{self.tasks.ways}-way " if "ways" in self.family.settings else ""
        return (
            f"{self.tasks.task}, {self.algorithm.algorithm}, {ways}{self.tasks.shots}-shot, {self.tasks.model}, "
            f"{self.train.iterations:,} iterations"
        )

    @property
    def family(self) -> Family:
        """What the tasks are."""
        return FAMILIES[self.tasks.task]

    @property
    def eval_steps(self) -> int:
        """Inner steps of the evaluation."""
        return self.evaluation.eval_steps or self.algorithm.inner_steps


def from_flat(settings: Mapping[str, Any]) -> RunConfig:
    """The run with these settings; names that are no setting of a run are ignored."""
    parts = {
        part: kind(**{spec.name: settings[spec.name] for spec in fields(kind) if spec.name in settings})
        for part, kind in PARTS.items()
    }
    return RunConfig(**parts)


def load_source(config: RunConfig, paths: Sequence[str]) -> Source | None:
    """The run's data; None for a family that needs none.

    Raises:
        FileNotFoundError, ValueError: for missing, damaged or unfit data; or none, where some is needed.
        RuntimeError: without a library that reads it; the message names the extra.
    """
    family = config.family
    if paths and not family.data:
        raise ValueError(f"--data has no meaning for task {config.tasks.task}, which makes its own; leave it out")
    if not paths and family.data and not family.optional:
        raise ValueError(f"task {config.tasks.task} needs data: name with --data {family.data}")
    return family.load(config.tasks, paths)


def fitted(config: RunConfig, source: Source | None) -> RunConfig:
    """The run with what its network must know of the data: shape and vocabulary."""
    changes: dict[str, Any] = {"shape": config.family.shape(config.tasks, source)}
    if isinstance(source, Text):
        changes["vocabulary"] = source.vocabulary
    return config.replace(changes)


def make_model(config: RunConfig) -> nn.Module:
    """The run's network, initialised from its seed."""
    torch.manual_seed(config.train.seed)
    part = config.tasks
    return build_model(
        part.model,
        shape=part.shape or (1, 28, 28),
        ways=part.ways,
        channels=part.channels,
        width=part.width,
        latent=part.latent,
        zero_head=part.zero_head,
    )


def make_algorithm(
    config: RunConfig,
    model: nn.Module,
    execution: Execution,
    *,
    evaluation: bool = False,
    bn_statistics: Literal["batch", "support"] | None = None,
) -> MetaLearner:
    """The run's meta-learner around `model`.

    Args:
        evaluation: adapt to the whole support set in every step, whatever `inner_batch_size` says.
        bn_statistics: in place of the run's.

    Raises:
        ValueError: for a step size, a number of steps or a chunk out of range.
    """
    part = config.algorithm
    optimizer = (
        SGD(lr=part.inner_lr, momentum=part.inner_momentum)
        if part.inner_optimizer == "sgd"
        else Adam(lr=part.inner_lr, betas=(part.inner_momentum, 0.999))
    )
    return ALGORITHMS[part.algorithm](
        model,
        inner_loss=config.family.loss,
        inner_optimizer=optimizer,
        inner_steps=part.inner_steps,
        inner_batch_size=None if evaluation else part.inner_batch_size or None,
        backend=execution.backend,
        compile=execution.compile,
        cuda_graph=execution.cuda_graph,
        memory=execution.memory,
        task_chunk=execution.task_chunk or None,
        bn_statistics=bn_statistics or part.bn_statistics,
        precision=part.precision,
    )


def make_family(
    config: RunConfig, source: Source | None, device: torch.device, *, evaluation: bool = False
) -> TaskFamily:
    """The run's tasks; for evaluation those of its first test, without the distortions that training uses.

    Args:
        source: what `load_source` gave; None for a task without data.
    """
    family = config.family
    if source is None and not family.optional:
        raise ValueError(f"task {config.tasks.task} needs data: name with --data {family.data}")
    if evaluation:
        return next(iter(family.tests(config.tasks, source, device).values()))
    return family.train(config.tasks, source, device)
