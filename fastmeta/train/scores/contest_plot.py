"""The picture of a contest: bars of accuracies, or errors over inner steps, each with its 95 % interval."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .evaluate import Estimate
from .plots import new_figure


class Bar(NamedTuple):
    """An algorithm on tasks of one size: its scores by inner steps, and what its paper reports, as printed."""

    algorithm: str
    tasks: str
    scores: Mapping[int, Estimate]
    published: str | None


def plot_contest(bars: Sequence[Bar], path: Path, *, percent: bool, measure: str) -> None:
    """Draw all algorithms, one panel a size of tasks.

    Args:
        bars: in order.
        path: the PNG to write.
        percent: scores are accuracies, of which the last is drawn, beside the published one; else errors, drawn over
            inner steps.
        measure: what the score is, for the axis.

    Raises:
        RuntimeError: without Matplotlib (`pip install "fastmeta[train]"`).
    """
    columns = list(dict.fromkeys(bar.tasks for bar in bars))
    count = len({bar.algorithm for bar in bars})
    width = max(4.5, 0.45 * count + 2) if percent else 6.0
    figure = new_figure(figsize=(width * len(columns), 4.6))
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        mine = [bar for bar in bars if bar.tasks == column]
        (_bars if percent else _curves)(axes, mine)
        axes.set_title(column, fontsize="medium")
        axes.set_ylabel(f"{measure}, %" if percent else measure)
        axes.grid(alpha=0.3, axis="y")
    panels[0].legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=110)


def _bars(axes: Any, bars: Sequence[Bar]) -> None:
    lowest = 100.0
    for place, bar in enumerate(bars):
        estimate = bar.scores[max(bar.scores)]
        mean, error = 100 * estimate.mean, 100 * estimate.half_width
        label = "measured, 95 % confidence" if place == 0 else None
        axes.bar(place, mean, yerr=error, color="tab:blue", alpha=0.7, capsize=4, label=label)
        lowest = min(lowest, mean - error)
    known = [(place, _number(bar.published)) for place, bar in enumerate(bars) if bar.published is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "k_", markersize=14, label="published, after full training")
        lowest = min(lowest, *(value for _, value in known))
    axes.set_xticks(range(len(bars)), [bar.algorithm for bar in bars], rotation=60, ha="right")
    axes.set_ylim(max(0.0, lowest - 5), 100)


def _curves(axes: Any, bars: Sequence[Bar]) -> None:
    for place, bar in enumerate(bars):
        steps = sorted(bar.scores)
        means = [bar.scores[k].mean for k in steps]
        bands = [bar.scores[k].half_width for k in steps]
        line = axes.errorbar(steps, means, yerr=bands, marker="osD^vPX*"[place % 8], markersize=4, capsize=2)
        line.set_label(bar.algorithm)
    axes.set_xlabel("inner steps")
    axes.set_yscale("log")
    axes.set_ylim(top=3 * max(bar.scores[0].mean for bar in bars))  # what diverges leaves the picture


def _number(printed: str) -> float:
    """The mean of a printed figure such as "98.7 ± 0.4"."""
    found = re.match(r"-?\d+(\.\d+)?", printed)
    assert found is not None, f"a published figure begins with a number, got {printed!r}"
    return float(found[0])
