"""The picture of learners on streams of changing tasks: the present task and the first one, over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .evaluate import Estimate
from .plots import new_figure

_STYLES = ("tab:blue", "tab:orange", "tab:gray", "tab:green")


def plot_drift(
    courses: Mapping[str, tuple[Sequence[Estimate], Sequence[Estimate]]], path: Path, *, changes: Sequence[int],
    percent: bool, measure: str,
) -> None:  # fmt: skip
    """Draw two panels, with 95 % confidence bands.

    Args:
        courses: by learner, its scores of the present task and of the first one at each moment.
        path: the PNG to write.
        changes: moments at which the task changes suddenly.
        percent: scores are accuracies, else errors, drawn on a logarithmic axis.
        measure: what the score is, for the axis.

    Raises:
        RuntimeError: without Matplotlib (`pip install "fastmeta[train]"`).
    """
    figure = new_figure(figsize=(12, 4.4))
    titles = ("the present task, before learning from its chunk", "the first task, seen at the beginning alone")
    scale = 100 if percent else 1
    for panel, (axes, title) in enumerate(zip(figure.subplots(1, 2, sharey=True), titles, strict=True)):
        for (name, course), color in zip(courses.items(), _STYLES, strict=False):
            times = range(len(course[panel]))
            means = [scale * estimate.mean for estimate in course[panel]]
            bands = [scale * estimate.half_width for estimate in course[panel]]
            axes.plot(times, means, color=color, marker="o", markersize=3, label=name)
            low, high = zip(*((m - b, m + b) for m, b in zip(means, bands, strict=True)), strict=True)
            axes.fill_between(times, low, high, color=color, alpha=0.2, linewidth=0)
        for place, time in enumerate(changes):
            axes.axvline(time, color="black", linestyle=":", linewidth=0.8, label=None if place else "task changes")
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("chunks learned from")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if not percent:
            axes.set_yscale("log")
    figure.axes[0].set_ylabel(f"{measure}, %" if percent else measure)
    figure.axes[0].legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=110)
