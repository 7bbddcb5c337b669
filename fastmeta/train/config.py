"""A whole run as plain settings, from which model, algorithm and task family are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch

from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import FOMAML, MAML
from fastmeta.algorithms.reptile import Reptile
from fastmeta.tasks.base import check_count
from fastmeta.train.families.base import Family
from fastmeta.train.families.registry import FAMILIES
from fastmeta.train.families.settings import TaskConfig

from .run_config import Setting, TrainConfig, check_fields

ALGORITHMS: dict[str, type[MetaLearner]] = {"maml": MAML, "fomaml": FOMAML, "reptile": Reptile}


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
