"""Learners without an inner loop: an encoder that all tasks share, and a classifier in closed form on its features."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.engine.batch import TaskBatch, Tree, finite_tasks
from fastmeta.engine.boundary import outside_of_compile
from fastmeta.engine.checks import check_batch, check_query
from fastmeta.engine.episode import Episode, Head, no_loss
from fastmeta.engine.labels import Members, check_query_labels
from fastmeta.engine.options import Loss, Options
from fastmeta.engine.session import Call, Session
from fastmeta.optim.base import State

from .base import MetaLearner

_WITHOUT = (
    "inner_loss", "inner_optimizer", "inner_steps", "inner_batch_size", "inner_clip_norm", "bn_statistics"
)  # fmt: skip


class FeatureArguments(TypedDict, total=False):
    """The options of learners without an inner loop. `fastmeta.MetaLearner` describes them."""

    outer_loss: Loss
    backend: Literal["auto", "torch", "triton", "reference"]
    compile: bool
    cuda_graph: bool
    memory: Literal["save", "recompute"]
    task_chunk: int | None
    precision: Literal["float32", "tf32", "bfloat16"]
    proof: Literal["first", "off"]


class FeatureLearner(MetaLearner):
    """Common part of algorithms that fit a classifier to an encoder's features in closed form: no inner loop.

        logits = h(f_θ(x); f_θ(support set), labels),    θ ← θ − β ∇_θ mean_t L_q(logits)

    A meta-step costs one pass over support and query samples, forward and backward, with the weights that all tasks
    share, whatever number of tasks. Batch norm without running statistics normalises each task by itself.

    Labels stand in any order and number, 0 … C − 1. Support samples of label −100 count for nothing, as padding of
    tasks of unequal size does; only batch norms see their inputs, so pad by copies of the task's own. A class
    without support samples loses 1e30 in its logit, so that it never wins and has a probability of exactly 0; a query
    sample of such a class is an error (on a GPU, where looking would wait, a loss of that size).

    Args:
        encoder: f_θ, samples [N, ...] → features [N, ...], flattened to [N, D].
        head: h.
        ways: C. None: one more than the largest support label of the meta-batch; on a GPU finding it waits for the
            device, and each C has a plan of its own.
        joint: support and query set pass the encoder as one batch, whose statistics a batch norm takes; else apart.
        outer_loss: (logits, targets) of one task → scalar.

    backend, compile, cuda_graph, memory, task_chunk, precision and proof are described at `fastmeta.MetaLearner`.

    Raises:
        TypeError, ValueError: an option out of range; the message lists what is legal.
    """

    def __init__(
        self, encoder: nn.Module, head: Head, *, ways: int | None, joint: bool, outer_loss: Loss = F.cross_entropy,
        **options: Any,
    ) -> None:  # fmt: skip
        if ways is not None and (type(ways) is not int or ways < 2):
            raise ValueError(f"ways must be an integer of at least 2, or None (those of each meta-batch), got {ways!r}")
        if type(joint) is not bool:
            raise TypeError(f"joint must be True or False, got {joint!r}")
        self.ways = ways
        if isinstance(encoder, nn.Module):
            self._episode = (Episode(encoder, head, joint=joint),)  # a tuple: the encoder is registered as `module`
        super().__init__(encoder, inner_loss=no_loss, outer_loss=outer_loss, inner_steps=0, **options)

    @property
    def network(self) -> nn.Module:
        """Encoder and head on whole tasks."""
        return self._episode[0]

    @property
    def head(self) -> Head:
        """h."""
        return self._episode[0].head

    @property
    def joint(self) -> bool:
        """Whether support and query set are one batch."""
        return self._episode[0].joint

    def _take_rule(self, options: Options) -> None:
        self.learned = self.head if any(True for _ in self.head.parameters()) else None

    def _change(self, option: str, value: Any) -> None:
        if option in _WITHOUT:
            raise ValueError(f"{option} cannot be set: {type(self).__name__} has no inner loop")
        super()._change(option, value)

    def session(
        self, batch: TaskBatch, *, steps: int | None = None, going_on: tuple[Tensor, State, int] | None = None
    ) -> Session:
        """A meta-batch bound to what runs it; without query targets only its outputs may be asked for."""
        self._check_steps(steps)
        batch = self.episodes(batch)
        check_batch(
            batch, module=self.module, inner_loss=no_loss, outer_loss=self.outer_loss, inner_batch_size=None,
            query_required=True,
        )  # fmt: skip
        members = Members.of(batch.support_x, batch.support_y, self.ways, self._dtype)
        check_query_labels(batch.query_y, members)
        return self._open(batch, members)

    def _open(self, batch: TaskBatch, members: Members) -> Session:
        task = (batch.support_x, batch.query_x, members.values, members.absent)
        whole = TaskBatch(task, None, None if batch.query_y is None else task, batch.query_y)
        return self._plans.open(self.network, self.options, whole, Call(0))

    @property
    def _dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.module.parameters() if p.requires_grad)

    @outside_of_compile
    def adapt(self, support_x: Tree, support_y: Tree = None, *, steps: int | None = None) -> TaskClassifiers:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Every task's classifier; they can be called, differentiably in θ and in what the head learns.

        Args:
            support_x: inputs [T, N, ...].
            support_y: labels int64 [T, N].
            steps: there are none: None or 0.
        """
        self._check_steps(steps)
        batch = self.episodes(TaskBatch(support_x, support_y))
        check_batch(
            batch, module=self.module, inner_loss=no_loss, outer_loss=None, inner_batch_size=None, query_required=False
        )
        members = Members.of(batch.support_x, batch.support_y, self.ways, self._dtype)
        classifiers = TaskClassifiers(self, batch.support_x, members)
        self._warn(classifiers.finite)
        return classifiers

    def _check_steps(self, steps: int | None) -> None:
        if steps not in (None, 0):
            raise ValueError(f"steps must be None or 0, as {type(self).__name__} has no inner loop, got {steps!r}")


class TaskClassifiers:
    """All tasks' classifiers. Call them on query inputs [T, M, ...]; differentiable in θ.

    The support set is encoded again in every call: memory between calls is that of the data alone, and with `joint`
    its features depend on the query set.

    Attributes:
        finite: [T] bool. False: the task's support data holds a NaN or infinity.
    """

    def __init__(self, learner: FeatureLearner, support_x: Tree, members: Members) -> None:
        self._learner, self._support_x, self._members = learner, support_x, members
        self.finite = finite_tasks(support_x)

    @outside_of_compile
    def __call__(self, query_x: Tree) -> Tensor:
        """Logits [T, M, C]."""
        learner = self._learner
        check_query(query_x, tasks=self.finite.shape[0], module=learner.module)
        session = learner._open(TaskBatch(self._support_x, None, query_x), self._members)
        return shared_outputs(session, session.batch.support_x)

    def __repr__(self) -> str:
        return f"TaskClassifiers({self.finite.shape[0]} tasks, {self._members.values.shape[2]} classes)"


def shared_outputs(session: Session, x: Tree) -> Any:
    """The module's outputs [T, N, ...] on inputs `x`, at the parameters that all tasks share and nothing has moved.

    Differentiable in them; tasks whose inputs or outputs hold a NaN or infinity have no share in the gradient.
    """
    start = session.at.start
    assert not isinstance(start, Tensor), "the session starts at the module's parameters"
    tasks = session.batch.tasks
    phi = session.layout.row(start).expand(tasks, -1)  # stride 0, by which layers see that it is one for all
    outputs = session.outputs(phi, x)
    if phi.requires_grad:
        finite = finite_tasks(x, outputs).unsqueeze(1)
        phi.register_hook(lambda d: torch.where(finite, d, 0.0))
    return outputs
