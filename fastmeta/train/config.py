"""A whole run as plain settings, from which model, algorithm and task family are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch

from fastmeta.tasks.base import check_count

from .families.base import Family
from .families.registry import FAMILIES
from .families.settings import TaskSettings
from .families.sinusoid import SinusoidSettings
from .methods.base import AnyMethod, MethodSettings
from .methods.registry import METHODS
from .run_config import Setting, TrainConfig, check_fields, from_values


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

    algorithm: str = field(default="maml", metadata={"help": "meta-learner", "choices": tuple(METHODS)})
    inner_optimizer: str = field(
        default="sgd", metadata={"help": "optimiser of the inner loop", "choices": ("sgd", "adam")}
    )
    inner_lr: float = field(default=0.01, metadata={"help": "its step size, for a mean over samples"})
    inner_momentum: float = field(default=0.0, metadata={"help": "SGD's momentum"})
    inner_beta1: float = field(
        default=0.0, metadata={"help": "Adam's first beta; 0.9 is usual outside of meta-learning"}
    )
    inner_steps: int = field(default=1, metadata={"help": "inner steps while training"})
    inner_batch_size: int | None = field(
        default=None, metadata={"help": "support samples of an inner step while training; 0: all", "automatic": True}
    )
    bn_statistics: Literal["batch", "support"] = field(
        default="batch",
        metadata={"help": "whose statistics normalise query samples", "choices": ("batch", "support")},
    )
    first_order: bool = field(
        default=False, metadata={"help": "inner gradients count as constants in the meta-gradient"}
    )
    precision: Literal["float32", "tf32", "bfloat16"] = field(
        default="float32",
        metadata={"help": "of matrix products", "choices": ("float32", "tf32", "bfloat16")},
    )

    def __post_init__(self) -> None:
        check_fields(self)
        others = {"sgd": ("inner_beta1", "Adam", "inner_momentum"), "adam": ("inner_momentum", "SGD", "inner_beta1")}
        name, owner, own = others[self.inner_optimizer]
        if getattr(self, name):
            raise ValueError(
                f"{name} is {owner}'s and has no meaning for inner_optimizer {self.inner_optimizer}, got "
                f"{getattr(self, name):g}; set it to 0 (--{name.replace('_', '-')} 0), and {own} "
                f"(--{own.replace('_', '-')}) where that was meant"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a trained network is scored by default; changes nothing of the training."""

    eval_steps: int | None = field(
        default=None, metadata={"help": "inner steps in evaluation; 0: as --inner-steps", "automatic": True}
    )
    episodes: int = field(default=600, metadata={"help": "episodes of the evaluation"})

    def __post_init__(self) -> None:
        check_count("episodes", self.episodes)
        if self.eval_steps is not None:
            check_count("eval_steps", self.eval_steps)


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
    task_chunk: int | None = field(
        default=None, metadata={"help": "tasks that run at once; 0: automatic", "automatic": True}
    )

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
    "algorithm": AlgorithmConfig,
    "train": TrainConfig,
    "pretraining": PretrainConfig,
    "evaluation": EvaluationConfig,
}
"""The settings of a run beside those of its tasks and its algorithm's own, whose classes depend on which these are."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the numbers of a run."""

    tasks: TaskSettings = field(default_factory=SinusoidSettings)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    own: MethodSettings = field(default_factory=MethodSettings)
    train: TrainConfig = field(default_factory=TrainConfig)
    pretraining: PretrainConfig = field(default_factory=PretrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        method, name = self.method, self.algorithm.algorithm
        if type(self.own) is not method.settings_type:
            raise TypeError(f"own must be {method.settings_type.__name__} for algorithm {name}, got {self.own!r}")
        if method.classifies and not self.family.percent:
            raise ValueError(f"algorithm {name} classifies, and the tasks of {self.tasks.task} have no classes")
        if self.algorithm.bn_statistics != "batch" and not method.bn_statistics:
            raise ValueError(
                f"bn_statistics has no meaning for algorithm {name}, got {self.algorithm.bn_statistics!r}; leave it out"
            )
        if self.algorithm.bn_statistics == "support" and self.tasks.model == "conv4-padded":
            raise ValueError("bn_statistics support is not for conv4-padded, whose batch norm is its own; leave it out")
        if getattr(self.tasks, "varied", False):
            self._check_padded()
        if self.eval_steps > self.algorithm.inner_steps and not method.longer:
            raise ValueError(
                f"algorithm {name} learns something for each inner step, of which it has inner_steps="
                f"{self.algorithm.inner_steps}, and eval_steps={self.eval_steps} are asked for; take no more"
            )

    def _check_padded(self) -> None:
        """Tasks of different sizes are padded, which not everything can be told from samples."""
        name = self.algorithm.algorithm
        if not self.method.padded:
            raise ValueError(f"algorithm {name} takes tasks of one size; ask for no range of ways or shots")
        if self.algorithm.inner_batch_size is not None:
            raise ValueError(
                f"inner_batch_size={self.algorithm.inner_batch_size} would cut tasks of different sizes into slices of "
                "which some hold padding alone; leave it out (--inner-batch-size 0), or ask for tasks of one size"
            )
        if getattr(self.tasks, "train_shots", None) is not None:
            raise ValueError("train_shots is for tasks of one size; leave it out (--train-shots 0), or the ranges")

    def flat(self) -> dict[str, Any]:
        """All settings by name."""
        parts = (asdict(getattr(self, part)) for part in ("tasks", "own", *PARTS))
        return {"task": self.tasks.task, **{name: value for part in parts for name, value in part.items()}}

    def settings(self) -> dict[str, Setting]:
        """What a `Trainer` takes as `settings`: all but its own configuration."""
        own = {spec.name for spec in fields(TrainConfig)}
        return {name: value for name, value in self.flat().items() if name not in own}

    def replace(self, changes: Mapping[str, Any]) -> RunConfig:
        """The same run with some settings changed, by name; those of another `task` that this one lacks are defaults.

        Raises:
            ValueError: for a value out of range, or a name that is no setting of the run.
        """
        changed = from_flat({**self.flat(), **changes})
        unknown = sorted(changes.keys() - changed.flat().keys())
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)} is no setting of task {changed.tasks.task}, whose settings are "
                f"{', '.join(changed.flat())}"
            )
        return changed

    def summary(self) -> str:
        """In a few words."""
        return (
            f"{self.tasks.task}, {self.algorithm.algorithm}, {self.tasks.size}, {self.tasks.model}, "
            f"{self.train.iterations:,} iterations"
        )

    @property
    def family(self) -> Family[Any, Any]:
        """What the tasks are."""
        return FAMILIES[self.tasks.task]

    @property
    def bn_statistics(self) -> tuple[Literal["batch", "support"], ...]:
        """Whose statistics may normalise query samples; "batch" alone where there is nothing to choose."""
        choice = self.family.batch_norm and self.method.bn_statistics and self.tasks.model != "conv4-padded"
        return ("batch", "support") if choice else ("batch",)

    @property
    def steps_to_score(self) -> list[int]:
        """Numbers of inner steps after which a trained network is scored."""
        if not self.method.inner_loop:
            return [0]
        return sorted({0, self.algorithm.inner_steps, self.eval_steps, *self.family.scored_after})

    @property
    def method(self) -> AnyMethod:
        """What the algorithm is."""
        return METHODS[self.algorithm.algorithm]

    @property
    def eval_steps(self) -> int:
        """Inner steps of the evaluation."""
        steps = self.evaluation.eval_steps
        return self.algorithm.inner_steps if steps is None else steps


def from_flat(settings: Mapping[str, Any]) -> RunConfig:
    """The run with these settings; names that are no setting of a run are ignored.

    Raises:
        ValueError: for an unknown task, or a value out of range.
    """
    task = settings.get("task", SinusoidSettings.task)
    if task not in FAMILIES:
        raise ValueError(f"task must be one of {', '.join(FAMILIES)}, got {task!r}")
    parts: dict[str, Any] = {part: from_values(kind, settings) for part, kind in PARTS.items()}
    own = METHODS[parts["algorithm"].algorithm].settings_type
    tasks = FAMILIES[task].settings_type
    return RunConfig(tasks=from_values(tasks, settings), own=from_values(own, settings), **parts)


def from_checkpoint(settings: Mapping[str, Any]) -> RunConfig:
    """The run with the settings of a checkpoint, which an older version may have written.

    There every family had all settings of all families, and `inner_momentum` was Adam's first beta as well.
    """
    settings = dict(settings)
    if "inner_beta1" not in settings and settings.get("inner_optimizer") == "adam":
        settings["inner_beta1"] = settings.pop("inner_momentum", 0.0)
    return from_flat(settings)
