"""Settings of the outer loop, and what all classes of settings share: checks, and values by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from fastmeta.tasks.base import check_count

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Setting = str | int | float | bool | None | tuple[str, ...] | tuple[int, ...]

C = TypeVar("C", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The outer loop.

    Attributes:
        iterations: meta-steps in all; a finished run may be extended.
        meta_batch: tasks T of a meta-step.
        outer_optimizer: "adam" or "sgd" (what Reptile's paper uses, with lr = ε).
        outer_lr: its step size.
        schedule: of the step size over the iterations: "constant", "cosine" or "linear", both down to 0.
        grad_clip: bound on the norm of the meta-gradient; 0 for none.
        seed: of the episodes, and of the network's initialisation where the command line makes it.

    Raises:
        ValueError: for a value out of range.
    """

    iterations: int = field(default=1000, metadata={"help": "meta-steps in all"})
    meta_batch: int = field(default=25, metadata={"help": "tasks of a meta-step"})
    outer_optimizer: str = field(
        default="adam", metadata={"help": "optimiser of the meta-parameters", "choices": ("adam", "sgd")}
    )
    outer_lr: float = field(default=1e-3, metadata={"help": "its step size"})
    schedule: str = field(
        default="constant",
        metadata={"help": "of the outer step size", "choices": ("constant", "cosine", "linear")},
    )
    grad_clip: float = field(default=0.0, metadata={"help": "bound on the meta-gradient's norm; 0: none"})
    seed: int = field(default=0, metadata={"help": "of initialisation and episodes"})

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations, minimum=0)
        check_count("meta_batch", self.meta_batch)
        check_count("seed", self.seed, minimum=0)
        check_fields(self)
        for name in ("outer_lr", "grad_clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")

    def lr_at(self, iteration: int) -> float:
        """The outer step size of one meta-step, counted from 0."""
        return self.outer_lr * self.lr_factor(iteration)

    def lr_factor(self, iteration: int) -> float:
        """What the schedule multiplies `outer_lr` with in one meta-step, counted from 0."""
        done = iteration / max(self.iterations, 1)
        factors = {"constant": 1.0, "cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1.0 - done}
        return factors[self.schedule]


def check_fields(config: Any) -> None:
    """Raise ValueError where a dataclass field with `choices` in its metadata holds something else."""
    for name, spec in config.__dataclass_fields__.items():
        choices = spec.metadata.get("choices")
        value = getattr(config, name)
        if choices is not None and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def from_values(kind: type[C], values: Mapping[str, Any]) -> C:
    """A settings class from values by name, of which those that are not its own are left out.

    Where a field may be automatic, 0 and "" mean None, as on the command line and in checkpoints of older versions.
    """
    own = {}
    for spec in fields(kind):
        if spec.name in values:
            value = values[spec.name]
            own[spec.name] = None if spec.metadata.get("automatic") and not value else value
    return kind(**own)
