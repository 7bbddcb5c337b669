"""A whole run as plain settings, from which model, algorithm and task family are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from .algorithms import FOMAML, MAML, MetaLearner, Reptile
from .inner import SGD, Adam
from .models import MODELS, build_model
from .tasks import Characters, FewShot, Sinusoid, TaskFamily
from .train import Setting, TrainConfig, check_fields

ALGORITHMS: dict[str, type[MetaLearner]] = {"maml": MAML, "fomaml": FOMAML, "reptile": Reptile}


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is learned, and by which network. All but `task`, `shots` and `queries` concern classification."""

    task: str = field(default="sinusoid", metadata={"choices": ("sinusoid", "omniglot"), "flag": False})
    model: str = field(default="sinusoid-mlp", metadata={"help": "network", "choices": MODELS})
    channels: int = field(default=64, metadata={"help": "filters of each convolution"})
    zero_head: bool = field(default=False, metadata={"help": "start a classifier's last layer at zero"})
    ways: int = field(default=5, metadata={"help": "classes of a task"})
    shots: int = field(default=10, metadata={"help": "support samples per class (or per sinusoid)"})
    train_shots: int = field(default=0, metadata={"help": "while training; 0: as --shots"})
    queries: int = field(default=10, metadata={"help": "query samples per class (or per sinusoid)"})
    within_alphabet: bool = field(default=False, metadata={"help": "all classes of a task of one alphabet"})
    rotations: bool = field(default=False, metadata={"help": "train on characters turned by 90, 180, 270° too"})
    mirrored: bool = field(default=False, metadata={"help": "train on mirrored characters too"})
    augment: float = field(
        default=0.0, metadata={"help": "random affine distortion of every training image; 1 is usual"}
    )
    augment_classes: float = field(
        default=0.0, metadata={"help": "and one that a training class's images share; 1 is usual"}
    )
    alphabets: tuple[str, ...] = field(default=(), metadata={"help": "use these alphabets only"})
    exclude_alphabets: tuple[str, ...] = field(default=(), metadata={"help": "leave these alphabets out"})

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.task == "sinusoid") != (self.model == "sinusoid-mlp"):
            raise ValueError(f"model {self.model} does not fit task {self.task}; leave --model out")


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
    "evaluation": EvaluationConfig,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the numbers of a run."""

    tasks: TaskConfig = field(default_factory=TaskConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
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


def make_model(config: RunConfig) -> nn.Sequential:
    """The run's network, initialised from its seed."""
    torch.manual_seed(config.train.seed)
    part = config.tasks
    return build_model(part.model, ways=part.ways, channels=part.channels, zero_head=part.zero_head)


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
        inner_loss=F.mse_loss if config.tasks.task == "sinusoid" else F.cross_entropy,
        inner_optimizer=optimizer,
        inner_steps=part.inner_steps,
        inner_batch_size=None if evaluation else part.inner_batch_size or None,
        backend=execution.backend,
        compile=execution.compile,
        memory=execution.memory,
        task_chunk=execution.task_chunk or None,
        bn_statistics=bn_statistics or part.bn_statistics,
        precision=part.precision,
    )


def make_family(
    config: RunConfig, characters: Characters | None, device: torch.device, *, evaluation: bool = False
) -> TaskFamily:
    """The run's tasks; for evaluation without the distortions and extra classes that training uses.

    Args:
        characters: of the alphabets that the run uses; None for a task without images.
    """
    part = config.tasks
    shots = part.shots if evaluation else part.train_shots or part.shots
    if part.task == "sinusoid":
        return Sinusoid(shots=shots, queries=part.queries, device=device)
    if characters is None:
        raise ValueError("task omniglot needs images: name the zip files or folders with --data")
    return FewShot(
        characters,
        ways=part.ways,
        shots=shots,
        queries=part.queries,
        within_alphabet=part.within_alphabet,
        rotations=part.rotations and not evaluation,
        mirrored=part.mirrored and not evaluation,
        augment=0.0 if evaluation else part.augment,
        augment_classes=0.0 if evaluation else part.augment_classes,
        device=device,
    )
