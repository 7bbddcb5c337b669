"""Meta-steps of the workloads on Triton kernels, ready to run, to be counted or to be compiled only."""

from __future__ import annotations

from typing import Literal

from bench.networks import LOSSES
from bench.workloads import Workload
from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import MAML
from fastmeta.engine.batch import TaskBatch
from fastmeta.engine.session import Session
from fastmeta.optim.sgd import SGD


def session(
    workload: Workload,
    precision: str = "float32",
    *,
    algorithm: type[MetaLearner] = MAML,
    memory: Literal["save", "recompute"] = "save",
) -> Session:
    """The workload's network and batch, at the workload's own sizes."""
    learner = algorithm(
        workload.model(), inner_loss=LOSSES[workload.loss], inner_optimizer=SGD(lr=workload.lr),
        inner_steps=workload.steps, backend="triton", memory=memory,
        precision=precision,  # pyright: ignore[reportArgumentType]  # one of names.PRECISIONS
    )  # fmt: skip
    return session_of(learner, TaskBatch(*workload.batch()))


def session_of(learner: MetaLearner, batch: TaskBatch) -> Session:
    """A meta-step of the learner on a batch, with the learner's own number of inner steps."""
    return learner.session(batch)
