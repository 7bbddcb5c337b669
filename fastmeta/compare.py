"""What meta-learning bought: the same tasks adapted to from several starts, each with its own best step size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from .algorithms import MetaLearner
from .evaluate import Estimate, evaluate
from .tasks.base import TaskFamily

LR_FACTORS = (0.01, 0.1, 0.3, 1.0, 3.0)
"""Times the run's inner step size: what each start may choose from."""


@dataclass(frozen=True)
class Curve:
    """How well a start does after so many inner steps.

    Attributes:
        inner_lr: the step size that it chose.
        scores: {steps: estimate}.
    """

    inner_lr: float
    scores: dict[int, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Curves of all starts on one set of tasks.

    Attributes:
        title: of the tasks.
        percent: the score is an accuracy; else a mean squared error.
        curves: by the name of the start.
        measure: what the score is.
    """

    title: str
    percent: bool
    curves: dict[str, Curve]
    measure: str = ""

    @property
    def unit(self) -> str:
        """The score in words, for an axis."""
        measure = self.measure or ("accuracy" if self.percent else "mean squared error")
        return f"{measure}, %" if self.percent else measure

    def table(self) -> str:
        """One row a start, one column a number of steps."""
        steps = list(next(iter(self.curves.values())).scores)
        head = ["start", "step size", *(f"{count} step{'' if count == 1 else 's'}" for count in steps)]
        rows = [
            [name, f"{curve.inner_lr:g}", *(_cell(estimate, self.percent) for estimate in curve.scores.values())]
            for name, curve in self.curves.items()
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        return "\n".join(
            "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in [head, *rows]
        )


def _cell(estimate: Estimate, percent: bool) -> str:
    return estimate.percent().replace(" %", "") if percent else str(estimate)


def curve_steps(most: int) -> tuple[int, ...]:
    """Numbers of inner steps to score: 0, 1, 2, 5, 10, 20, 50 ... up to `most`."""
    round_ones = [a * 10**power for power in range(6) for a in (1, 2, 5)]
    return (0, *(count for count in round_ones if count < most), *([most] if most else []))


def compare(
    starts: Mapping[str, nn.Module],
    learner: Callable[[nn.Module, float], MetaLearner],
    tests: Mapping[str, TaskFamily],
    *,
    tuning: TaskFamily,
    inner_lr: float,
    percent: bool,
    steps: Sequence[int],
    episodes: int,
    seed: int,
) -> list[Comparison]:
    """Adapt every start to the same episodes of every test.

    Each start has the step size that does best after the last number of steps on 50 episodes of `tuning`, which are
    tasks of the training data: a network that was not trained for one step size is not held to it.

    Args:
        starts: networks by name.
        learner: (network, inner step size) → the meta-learner that adapts it.
        tests: tasks to score on, by title.
        tuning: tasks that the step sizes are chosen on.
        inner_lr: the middle of the step sizes (`LR_FACTORS`).
        percent: whether scores are accuracies (more is better) or mean squared errors.
        steps: numbers of inner steps, ascending.
        episodes: of each test.
        seed: of the episodes.
    """
    chosen = {
        name: _best_lr(lambda lr, model=model: learner(model, lr), tuning, inner_lr, steps[-1], percent, seed + 1)
        for name, model in starts.items()
    }
    results = []
    for title, family in tests.items():
        curves = {
            name: Curve(lr, evaluate(learner(starts[name], lr), family, steps=steps, episodes=episodes, seed=seed))
            for name, lr in chosen.items()
        }
        results.append(Comparison(title, percent, curves))
    return results


def _best_lr(
    learner: Callable[[float], MetaLearner],
    family: TaskFamily,
    inner_lr: float,
    steps: int,
    percent: bool,
    seed: int,
) -> float:
    scores = {
        factor * inner_lr: evaluate(learner(factor * inner_lr), family, steps=(steps,), episodes=50, seed=seed)[
            steps
        ].mean
        for factor in LR_FACTORS
    }
    return (max if percent else min)(scores, key=lambda lr: scores[lr])


def write_json(comparisons: Sequence[Comparison], path: Path) -> None:
    """The figures behind a picture."""
    path.write_text(json.dumps([asdict(comparison) for comparison in comparisons], indent=1) + "\n")
