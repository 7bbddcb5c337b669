"""Evaluation over many episodes, with confidence intervals, under `torch.no_grad`."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks import VariedEpisodes
from fastmeta.tasks.base import Episodes, TaskFamily, check_count

TEST_SEED = 1729
"""Of evaluation episodes: not a seed one trains with, so that they are new."""


@dataclass(frozen=True)
class Estimate:
    """A mean over episodes and the half-width of its 95 % confidence interval, 1.96 s / √n.

    Attributes:
        mean: of the n values.
        half_width: NaN for a single value.
        count: n.
        diverged: how many learners were not finite; they count as wrong throughout.
    """

    mean: float
    half_width: float
    count: int
    diverged: int = 0

    @classmethod
    def of(cls, values: Tensor, *, diverged: int = 0) -> Estimate:
        """From one value an episode, [n]."""
        values = values.double().cpu()
        half_width = 1.96 * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(values.mean().item(), half_width, len(values), diverged)

    def __str__(self) -> str:
        left_out = f", {self.diverged} of {self.count} learners diverged" if self.diverged else ""
        return f"{self.mean:.4g} ± {self.half_width:.2g}{left_out}"

    def percent(self) -> str:
        """For a share: in percent, two decimals."""
        left_out = f", {self.diverged} of {self.count} learners diverged" if self.diverged else ""
        return f"{100 * self.mean:.2f} ± {100 * self.half_width:.2f} %{left_out}"


def score(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """One number a task, [T]: accuracy for integer targets, mean squared error for others.

    Args:
        outputs: [T, M, C, ...] logits, or [T, M, ...] predictions; of several outputs the first is a prediction.
        targets: [T, M, ...] labels, those below 0 left out; or the shape of `outputs`.
    """
    if isinstance(outputs, tuple):
        outputs = outputs[0]
    if targets.dtype.is_floating_point:
        return (outputs - targets).square().flatten(1).mean(1)
    right, asked = outputs.argmax(2) == targets, targets >= 0
    return (right & asked).flatten(1).sum(1).double() / asked.flatten(1).sum(1)


def draw(family: TaskFamily, *, episodes: int, meta_batch: int, seed: int) -> Iterator[Episodes]:
    """`episodes` episodes, at most `meta_batch` at a time."""
    check_count("episodes", episodes)
    check_count("meta_batch", meta_batch)
    generator = torch.Generator(family.device).manual_seed(seed)
    for done in range(0, episodes, meta_batch):
        yield family.sample(min(meta_batch, episodes - done), generator)


def evaluate(
    algorithm: MetaLearner,
    family: TaskFamily,
    *,
    episodes: int = 600,
    meta_batch: int = 25,
    steps: Sequence[int] = (0, 1),
    seed: int = 0,
    measure: Callable[[Any, Tensor], Tensor] = score,
    worst: float | None = None,
) -> dict[int, Estimate]:
    """Accuracy (integer targets) or mean squared error on the query sets of fresh episodes.

    Args:
        algorithm: MAML, FOMAML or Reptile.
        family: where episodes come from.
        episodes: how many; every entry of `steps` sees the same ones.
        meta_batch: how many at a time; bounds memory.
        steps: numbers of inner steps; 0 scores the meta-parameters themselves.
        seed: of the episodes.
        measure: one number a task, [T], of outputs and targets [T, M, ...].
        worst: that of a learner that diverged; None: infinite for a mean squared error, zero for an accuracy.

    Returns:
        {steps: estimate}.

    Raises:
        ValueError: for a count below 1, or negative steps.
    """
    if isinstance(family, VariedEpisodes):
        family.check(algorithm.module)
    drawn = draw(family, episodes=episodes, meta_batch=meta_batch, seed=seed)
    return evaluate_episodes(algorithm, drawn, steps=steps, measure=measure, worst=worst)


@contextlib.contextmanager
def counted_divergence() -> Iterator[None]:
    """Without the engine's warning about learners that are not finite: the caller counts them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="non-finite values in task", category=RuntimeWarning)
        yield


@torch.no_grad()
@counted_divergence()
def evaluate_episodes(
    algorithm: MetaLearner, batches: Iterable[Episodes], *, steps: Sequence[int],
    measure: Callable[[Any, Tensor], Tensor] = score, worst: float | None = None,
    seen: Callable[[int, Tensor, Tensor], None] | None = None,
) -> dict[int, Estimate]:  # fmt: skip
    """As `evaluate`, on the given episodes.

    Args:
        seen: called with (steps, outputs, targets) of every batch, for scores of other kinds.
    """
    values: dict[int, list[Tensor]] = {count: [] for count in steps}
    diverged = dict.fromkeys(steps, 0)
    for episodes in batches:
        lost = (torch.inf if episodes.query_y.dtype.is_floating_point else 0.0) if worst is None else worst
        for count in steps:
            learners = algorithm.adapt(episodes.support_x, episodes.support_y, steps=count)
            outputs = algorithm.predictions(learners, episodes.query_x)
            finite = learners.finite & outputs.isfinite().flatten(1).all(1)
            values[count].append(torch.where(finite, measure(outputs, episodes.query_y), lost))
            diverged[count] += int((~finite).sum())
            if seen is not None:
                seen(count, outputs, episodes.query_y)
    return {count: Estimate.of(torch.cat(values[count]), diverged=diverged[count]) for count in steps}
