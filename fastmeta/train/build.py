"""What settings stand for: data, networks, algorithms and task families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Literal

import torch
from torch import nn

from fastmeta.algorithms.arguments import WithoutRule
from fastmeta.algorithms.base import MetaLearner
from fastmeta.models import build_model
from fastmeta.optim.adam import Adam
from fastmeta.optim.sgd import SGD
from fastmeta.tasks import TaskFamily, VariedEpisodes

from .config import Execution, RunConfig
from .families.base import Source
from .methods.base import Common


def load_source(config: RunConfig, paths: Sequence[str]) -> Source | None:
    """The run's data; None for a family that needs none.

    Raises:
        FileNotFoundError, ValueError: for missing, damaged or unfit data; or none, where some is needed.
        RuntimeError: without a library that reads it; the message names the extra.
    """
    family = config.family
    if paths and not family.data:
        raise ValueError(f"--data has no meaning for task {family.name}, which makes its own; leave it out")
    if not paths and family.data and not family.data_optional:
        raise ValueError(f"task {family.name} needs data: name with --data {family.data}")
    return family.load(config.tasks, paths)


def fitted(config: RunConfig, source: Source | None) -> RunConfig:
    """The run with what its network must know of the data: shape and vocabulary.

    Raises:
        TypeError, ValueError: for a source of another family, or none.
    """
    config.family.check_source(source)
    return replace(config, tasks=config.family.fit(config.tasks, source))


_NETWORK = ("ways", "channels", "width", "latent", "depth", "zero_head")
"""Settings that `build_model` takes, of which a family has some."""


def make_model(config: RunConfig) -> nn.Module:
    """The run's network, initialised from its seed."""
    torch.manual_seed(config.train.seed)
    settings = asdict(config.tasks)
    options = {name: settings[name] for name in _NETWORK if name in settings}
    model = build_model(config.tasks.model, shape=config.tasks.shape or (1, 28, 28), **options)
    return config.method.network(model, config.own, config.tasks)


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
        else Adam(lr=part.inner_lr, betas=(part.inner_beta1, 0.999))
    )
    options: WithoutRule = {
        "inner_loss": config.family.loss,
        "inner_steps": part.inner_steps,
        "inner_batch_size": None if evaluation else part.inner_batch_size,
        "first_order": part.first_order,
        "backend": execution.backend,
        "compile": execution.compile,
        "cuda_graph": execution.cuda_graph,
        "memory": execution.memory,
        "task_chunk": execution.task_chunk,
        "bn_statistics": bn_statistics or part.bn_statistics,
        "precision": part.precision,
    }
    return config.method.make(model, config.own, Common(optimizer, part.inner_lr, options, config.tasks))


def make_family(
    config: RunConfig, source: Source | None, device: torch.device, *, evaluation: bool = False
) -> TaskFamily:
    """The run's tasks; for evaluation those of its first test, without the distortions that training uses.

    Args:
        source: what `load_source` gave; None for a task without data.

    Raises:
        TypeError, ValueError: for a source of another family, or one that leaves too little for its tasks.
    """
    family = config.family
    family.check_source(source)
    if evaluation:
        tasks = next(iter(family.tests(config.tasks, source, device).values()))
    else:
        tasks = config.method.episodes(family.train(config.tasks, source, device), config.own, config.tasks)
    if isinstance(tasks, VariedEpisodes):
        with torch.random.fork_rng(devices=[]):  # whose state a run's checkpoint holds
            tasks.check(make_model(config))
    return tasks
