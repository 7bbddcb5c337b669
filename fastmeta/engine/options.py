"""All that the engine knows of a learner: one frozen set of options, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MethodType
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fastmeta.optim.base import InnerRule
from fastmeta.optim.sgd import SGD

from .adjoint import Adjoint, Implicit, Unrolled
from .prior import Prior
from .state import Same

Loss = Callable[[Any, Any], Tensor]

BACKENDS = ("auto", "torch", "triton", "reference")
MEMORY = ("save", "recompute")
BN_STATISTICS = ("batch", "support")
PRECISIONS = ("float32", "tf32", "bfloat16")
PROOFS = ("first", "off")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a meta-learner, as `MetaLearner` describes them, and how its adjoint goes.

    Raises:
        TypeError, ValueError: an option of a wrong kind or out of range; the message lists what is legal.
    """

    inner_loss: Loss = F.cross_entropy
    inner_optimizer: InnerRule = field(default_factory=lambda: SGD(lr=0.01))
    inner_steps: int = 1
    outer_loss: Loss = F.cross_entropy
    inner_batch_size: int | None = None
    inner_clip_norm: float | None = None
    backend: Literal["auto", "torch", "triton", "reference"] = "auto"
    compile: bool = False
    cuda_graph: bool = False
    memory: Literal["save", "recompute"] = "save"
    task_chunk: int | None = None
    bn_statistics: Literal["batch", "support"] = "batch"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    proof: Literal["first", "off"] = "first"
    adjoint: Adjoint = field(default_factory=Unrolled)
    prior: Prior | None = None
    query_batch_size: int | None = None

    def __post_init__(self) -> None:
        _check_callable("inner_loss", self.inner_loss)
        _check_callable("outer_loss", self.outer_loss)
        _check_rule(self.inner_optimizer)
        check_count("inner_steps", self.inner_steps, least=0)
        check_count("inner_batch_size", self.inner_batch_size, least=1, optional="all support samples")
        check_count("query_batch_size", self.query_batch_size, least=1, optional="all query samples")
        _check_norm(self.inner_clip_norm)
        check_count("task_chunk", self.task_chunk, least=1, optional="all tasks at once")
        _check_choice("backend", self.backend, BACKENDS)
        _check_choice("memory", self.memory, MEMORY)
        _check_choice("bn_statistics", self.bn_statistics, BN_STATISTICS)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("proof", self.proof, PROOFS)
        for name in ("compile", "cuda_graph"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.adjoint, Adjoint):
            raise TypeError(f"adjoint must be one of fastmeta.engine.adjoint, such as Unrolled(), got {self.adjoint!r}")
        if self.prior is not None and not isinstance(self.prior, Prior):
            raise TypeError(f"prior must be one of fastmeta.engine.prior, such as Proximal(1.0), got {self.prior!r}")
        learned = self.inner_optimizer.learned
        if learned is not None and not isinstance(self.adjoint, Unrolled) and self.adjoint.kernels != "first":
            raise ValueError(
                f"{type(learned).__name__} has no gradient under {type(self.adjoint).__name__}(), whose meta-gradient "
                "does not go through the inner steps; use fixed step sizes, or MAML or FOMAML"
            )
        if self.query_batch_size is not None and self.bn_statistics == "support":
            raise ValueError(
                'bn_statistics="support" takes batch norm\'s statistics from the whole support set, and query samples '
                'count in slices here (query_batch_size); use bn_statistics="batch"'
            )
        if isinstance(self.adjoint, Implicit) and self.inner_batch_size is not None:
            raise ValueError(
                "an implicit meta-gradient is that of the whole support loss: inner_batch_size must be None"
            )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state.pop("key", None)  # that of a copy is of the copy's losses
        return state

    @cached_property
    def rule(self) -> InnerRule:
        """The inner rule without its step sizes."""
        return self.inner_optimizer.structure()

    @cached_property
    def key(self) -> Hashable:
        """What of the options makes another plan; step sizes, numbers of steps and CUDA graphs do not.

        Which losses these are, not what state they are in: that changes from call to call.
        """
        return (
            _which(self.inner_loss), _which(self.outer_loss), self.rule, self.inner_batch_size, self.inner_clip_norm,
            self.backend, self.compile, self.memory, self.task_chunk, self.bn_statistics, self.precision, self.proof,
            self.adjoint, self.prior, self.query_batch_size,
        )  # fmt: skip


class Kind(NamedTuple):
    """What of a call makes another plan, beside options and the batch's shapes."""

    steps: int
    first: int  # steps that the inner loop went already
    asked: tuple[int, ...] | None  # steps k whose query loss counts; None: the last
    start: str  # "θ", the module's own parameters; "row", another one for all tasks; "rows", one a task
    meta: tuple[Hashable, ...]  # shape, dtype and whether a gradient is wanted, of each tensor of η
    ends: bool = False  # whether φ_K and the rule's state are wanted of a meta-step

    @property
    def meta_wanted(self) -> bool:
        """Whether anything that the inner rule learns gets a gradient."""
        return any(wanted for _, _, wanted in self.meta)  # pyright: ignore[reportGeneralTypeIssues]


def check_count(name: str, value: Any, *, least: int, optional: str = "") -> None:
    """Raises unless `value` is an integer of at least `least`, or None where `optional` says what that means."""
    if value is None and optional:
        return
    other = f", or None ({optional})" if optional else ""
    expected = f"{name} must be an integer of at least {least}{other}, got {value!r}"
    if type(value) is not int:  # True is no count
        raise TypeError(expected)
    if value < least:
        raise ValueError(expected)


def _which(loss: Loss) -> Hashable:
    """The very loss, which may have no hash, or an equality of its own. A method is another object at every access."""
    if isinstance(loss, MethodType):
        return Same(loss.__func__), Same(loss.__self__)
    return Same(loss)


def _check_rule(rule: Any) -> None:
    if isinstance(rule, InnerRule) and not isinstance(rule, type):
        return
    kind = rule if isinstance(rule, type) else type(rule)
    raise TypeError(
        "inner_optimizer must be fastmeta.SGD(lr=...), fastmeta.Adam(lr=...) or a rule of your own on "
        f"fastmeta.optim.Rule, got {kind.__module__}.{kind.__name__}; torch.optim cannot step the fast weights of many "
        "tasks"
    )


def _check_callable(name: str, loss: Any) -> None:
    if isinstance(loss, type):
        raise TypeError(f"{name} must be an instance, got the class {loss.__name__}; pass {loss.__name__}()")
    if not callable(loss):
        raise TypeError(f"{name} must be callable as (outputs, targets) → scalar, got {loss!r}")


def _check_norm(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"inner_clip_norm must be a positive number, or None (no clipping), got {value!r}")


def _check_choice(name: str, value: Any, legal: Sequence[str]) -> None:
    if value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, legal))}, got {value!r}")
