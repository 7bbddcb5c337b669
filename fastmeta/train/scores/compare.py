"""Meta-learning beside other starts: the same tasks adapted to from each, with the step size that is best for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import nn

from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks.base import TaskFamily

from .evaluate import Estimate, evaluate

LR_FACTORS = (0.01, 0.1, 0.3, 1.0, 3.0)
"""Times the run's inner step size: what each start may choose from."""


def tuning_episodes(episodes: int) -> int:
    """How many tasks of the training data a step size is chosen on, where `episodes` are scored."""
    return min(50, max(10, episodes // 4))


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
        samples: what a score is a mean over.
    """

    title: str
    percent: bool
    curves: dict[str, Curve]
    measure: str = ""
    samples: str = "episodes"

    @property
    def unit(self) -> str:
        """The score in words, for an axis."""
        measure = self.measure or ("accuracy" if self.percent else "mean squared error")
        return f"{measure}, %" if self.percent else measure

    def headline(self) -> str:
        """What the table's numbers are."""
        what = f"{self.title}: {self.unit}" if self.title != self.measure else self.unit
        count = next(iter(next(iter(self.curves.values())).scores.values())).count
        return f"{what} over {count:,} {self.samples}, 95 % confidence, by inner steps"

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
    """Numbers of inner steps to score: 0, 1, 5, 20, 50, 200, 500 ... up to `most`.

    Every number is adapted to from the start: these cost 1.3 times the steps of the last one, 1-2-5-10-20 twice them.
    """
    round_ones = [1] + [a * 10**power for power in range(6) for a in (5, 20)]
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

    Each start has the step size that does best after the last number of steps on a few episodes of `tuning`, which are
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

    def score(model: nn.Module, lr: float) -> float:
        most, count = steps[-1], tuning_episodes(episodes)
        return evaluate(learner(model, lr), tuning, steps=(most,), episodes=count, seed=seed + 1)[most].mean

    chosen = {name: best_lr(partial(score, model), inner_lr, highest=percent) for name, model in starts.items()}
    results = []
    for title, family in tests.items():
        curves = {
            name: Curve(lr, evaluate(learner(starts[name], lr), family, steps=steps, episodes=episodes, seed=seed))
            for name, lr in chosen.items()
        }
        results.append(Comparison(title, percent, curves))
    return results


def best_lr(score: Callable[[float], float], inner_lr: float, *, highest: bool) -> float:
    """Of the step sizes that a start may choose from, the one with the highest score, or the lowest."""
    scores = {factor * inner_lr: score(factor * inner_lr) for factor in LR_FACTORS}
    return (max if highest else min)(scores, key=lambda lr: scores[lr])


def write_json(comparisons: Sequence[Comparison], path: Path) -> None:
    """The figures behind a picture."""
    path.write_text(json.dumps([asdict(comparison) for comparison in comparisons], indent=1) + "\n")
