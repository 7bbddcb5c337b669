"""The first exact way of running a program: ops over all tasks where they prove themselves, else a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import nn

from fastmeta.inner_step import check_inner_steps
from fastmeta.program.program import Program, leaves_of

from .auto import KernelTrials
from .backends.base import Backend, Planned
from .backends.one_by_one import OneByOne
from .backends.torch_ops import TorchBackend
from .batch import TaskBatch
from .call import signature
from .checks import check_batch
from .objective import Data
from .options import Kind, Options
from .planning import make_backend, task_by_task
from .proof import Verdict, prove
from .recent import Recent


class Ladder:
    """Backends of one learner's programs, and what their proofs have said.

    Args:
        warn: says a message once.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._verdicts: Recent[Hashable, Verdict] = Recent()
        self._kernels = KernelTrials(warn)

    def backend(
        self, program: Program, module: nn.Module, options: Options, batch: TaskBatch, kind: Kind, losses: Hashable,
        *, with_loss: bool,
    ) -> Backend:  # fmt: skip
        """A new backend for batches like this one, which is checked; `losses` is the state that the losses are in."""
        if with_loss or batch.query_x is None:  # the parts of any other were checked when they came
            check_batch_of(batch, module, options, query_required=with_loss)
        check_inner_steps(module, kind.first + kind.steps)
        if options.backend == "reference":
            return OneByOne(module, program, options, batch, kind)
        made = make_backend(program, options, batch, kind, with_loss=with_loss)
        if isinstance(made, Planned) and options.proof == "first":
            made = self._proved(made, program, options, batch, kind, losses, with_loss=with_loss)
        if isinstance(made, TorchBackend) and made.choice.candidate is not None:
            made = self._kernels.decided(made, program, options, batch, kind, with_loss=with_loss)
        if isinstance(made, OneByOne):
            self._warn_of_idle_options(options, made.why)
        return made

    def _proved(
        self, made: Planned, program: Program, options: Options, batch: TaskBatch, kind: Kind, losses: Hashable,
        *, with_loss: bool,
    ) -> Backend:  # fmt: skip
        """A new backend, or the plain loop where its plans do not compute what PyTorch does."""
        support = Data(leaves_of(batch.support_x), leaves_of(batch.support_y))
        query = Data(leaves_of(batch.query_x), leaves_of(batch.query_y)) if with_loss else None
        made.check_labels(support, query)
        # what a plan depends on: not the number of tasks, nor what the loop around it does
        key = (
            program, losses, options.inner_batch_size, options.query_batch_size, options.bn_statistics,
            options.adjoint, min(kind.steps, 2), with_loss, signature(batch, tasks=min(batch.tasks, 2)),
        )  # fmt: skip
        verdict = self._verdicts.get(
            key, lambda: prove(made.engine, program, options, batch, kind, with_loss=with_loss)
        )
        if not verdict.failure:
            made.proof = verdict.line
            return made  # pyright: ignore[reportReturnType]  # the two classes of planned backends are
        if verdict.differs:
            self._warn(
                f"fastmeta's sweeps of this model are not used, because they are wrong: {verdict.failure}. Please "
                "report it. Tasks run one by one under plain autograd: results are right, at the speed of a plain loop"
            )
        return task_by_task(program, options, batch, kind, verdict.failure)

    def _warn_of_idle_options(self, options: Options, why: str) -> None:
        """Options that the plain loop has no use for."""
        for name in ("compile", "cuda_graph"):
            if getattr(options, name):
                self._warn(f"{name}=True does nothing here: the model runs task by task under plain autograd, as {why}")


def check_batch_of(batch: TaskBatch, module: nn.Module, options: Options, *, query_required: bool) -> None:
    """`check_batch` with a learner's options."""
    if batch.query_x is not None and batch.query_x is batch.support_x:
        # a support set that serves as the query set too: first in its own name
        check_batch_of(TaskBatch(batch.support_x, batch.support_y), module, options, query_required=False)
    check_batch(
        batch, module=module, inner_loss=options.inner_loss, outer_loss=options.outer_loss,
        inner_batch_size=options.inner_batch_size, query_required=query_required, bn_statistics=options.bn_statistics,
    )  # fmt: skip
