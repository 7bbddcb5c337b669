"""Pictures of a run: sinusoids before and after adaptation, and curves of several starts over adaptation steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmeta.algorithms.base import MetaLearner
from fastmeta.models import ClusteringAutoencoder
from fastmeta.tasks import Pixels, Sinusoid

from .calibration import Calibration
from .compare import Comparison
from .evaluate import counted_divergence


@torch.no_grad()
@counted_divergence()
def plot_sinusoids(
    algorithm: MetaLearner, family: Sinusoid, path: Path, *, steps: tuple[int, ...] = (1, 10), seed: int = 0
) -> None:
    """Draw four tasks: the truth, the support points, and the network after each number of inner steps.

    Args:
        algorithm: a trained meta-learner for inputs [N, 1].
        family: where the tasks come from.
        path: the PNG to write.
        steps: inner steps; the network before adaptation is always shown.
        seed: of the tasks.

    Raises:
        RuntimeError: without Matplotlib (`pip install "fastmeta[train]"`).
    """
    figure = new_figure(figsize=(11, 7))
    generator = torch.Generator(family.device).manual_seed(seed)
    amplitude, phase = family.sample_curves(4, generator)
    x = family.sample_inputs(4, family.shots, generator)
    y = amplitude * torch.sin(x - phase)
    grid = torch.linspace(-5, 5, 201).to(x).view(1, -1, 1).expand(4, -1, 1)
    curves = {count: algorithm.adapt(x, y, steps=count)(grid).squeeze(2).cpu() for count in (0, *steps)}
    truth = (amplitude * torch.sin(grid - phase)).squeeze(2).cpu()

    for task, axes in enumerate(figure.subplots(2, 2, sharex=True).flat):
        line = grid[task, :, 0].cpu()
        axes.plot(line, truth[task], color="black", linewidth=2, label="truth")
        for count, color in zip(curves, ("tab:gray", "tab:blue", "tab:red", "tab:green"), strict=False):
            label = "before" if count == 0 else f"after {count} step{'s' if count > 1 else ''}"
            axes.plot(line, curves[count][task], color=color, linestyle="--", label=label)
        axes.plot(x[task, :, 0].cpu(), y[task, :, 0].cpu(), "k^", label="support")
        axes.set_title(f"amplitude {amplitude[task].item():.2f}, phase {phase[task].item():.2f}")
    figure.axes[0].legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=110)


@torch.no_grad()
@counted_divergence()
def plot_reconstructions(
    algorithm: MetaLearner, family: Pixels, path: Path, *, steps: Sequence[int] = (0, 1, 3, 10), seed: int = 0
) -> None:
    """Draw eight images, and below each what the network makes of it after each number of inner steps.

    Args:
        algorithm: a trained meta-learner for places [N, 2].
        family: where the images come from; its query sets must be all pixels.
        path: the PNG to write.
        steps: inner steps.
        seed: of the images.

    Raises:
        RuntimeError: without Matplotlib (`pip install "fastmeta[train]"`).
    """
    support_x, support_y, query_x, query_y = family.sample(8, torch.Generator(family.device).manual_seed(seed))
    rows = {"original": query_y}
    for count in steps:
        name = f"{count} step{'' if count == 1 else 's'}"
        rows[name] = algorithm.adapt(support_x, support_y, steps=count)(query_x)
    figure = new_figure(figsize=(8.6, 1.08 * len(rows) + 0.1))
    panels = figure.subplots(len(rows), 8, squeeze=False)
    for (name, values), line in zip(rows.items(), panels, strict=True):
        pictures = family.pictures(values).clamp(0, 1).movedim(-3, -1).cpu()
        errors = (values - query_y).square().flatten(1).mean(1)
        for picture, error, axes in zip(pictures, errors.tolist(), line, strict=True):
            axes.imshow(picture.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if error:
                axes.set_xlabel(f"{-10 * math.log10(error):.1f} dB", fontsize="x-small", labelpad=1)
        line[0].set_ylabel(name, fontsize="small")
    figure.savefig(path, dpi=130)


_STYLES = {"from scratch": ("tab:gray", "s"), "pre-trained": ("tab:orange", "^"), "meta-learned": ("tab:blue", "o")}
_STYLE = ("tab:green", "d")


def plot_curves(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw the score of every start over adaptation steps, with 95 % confidence bands; one panel a set of tasks.

    Args:
        comparisons: what `Pipeline.compare` gave.
        path: the PNG to write.

    Raises:
        RuntimeError: without Matplotlib (`pip install "fastmeta[train]"`).
    """
    figure = new_figure(figsize=(5.6 * len(comparisons) + 0.4, 4.2))
    panels = figure.subplots(1, len(comparisons), squeeze=False)[0]
    for axes, comparison in zip(panels, comparisons, strict=True):
        steps = list(next(iter(comparison.curves.values())).scores)
        (_draw_curves if len(steps) > 1 else _draw_bars)(axes, comparison, steps)
        axes.set_ylabel(comparison.unit)
        if comparison.title != comparison.measure:
            axes.set_title(comparison.title, fontsize="medium")
        axes.grid(alpha=0.3)
    panels[0].legend(loc="best", fontsize="small", title="start (band: 95 % confidence)", title_fontsize="small")
    figure.savefig(path, dpi=110)


def _draw_curves(axes: Any, comparison: Comparison, steps: Sequence[int]) -> None:
    factor = 100 if comparison.percent else 1
    for name, curve in comparison.curves.items():
        color, marker = _STYLES.get(name, _STYLE)
        finite = {n: e for n, e in curve.scores.items() if torch.tensor([e.mean, e.half_width]).isfinite().all()}
        means = [factor * e.mean for e in finite.values()]
        bands = [factor * e.half_width for e in finite.values()]
        places = [steps.index(n) for n in finite]
        axes.plot(places, means, color=color, marker=marker, markersize=4, label=name)
        low = [mean - band for mean, band in zip(means, bands, strict=True)]
        high = [mean + band for mean, band in zip(means, bands, strict=True)]
        axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set_xticks(range(len(steps)), [str(n) for n in steps])
    axes.set_xlabel("inner steps")


def _draw_bars(axes: Any, comparison: Comparison, steps: Sequence[int]) -> None:
    """One number a start: a bar, with its confidence."""
    factor = 100 if comparison.percent else 1
    for place, (name, curve) in enumerate(comparison.curves.items()):
        estimate = curve.scores[steps[0]]
        color, _ = _STYLES.get(name, _STYLE)
        height, error = factor * estimate.mean, factor * estimate.half_width
        axes.bar(place, height, yerr=error, color=color, alpha=0.7, capsize=5, label=name)
    axes.set_xticks(range(len(comparison.curves)), list(comparison.curves))


@torch.no_grad()
def plot_codes(learners: Mapping[str, MetaLearner], images: Tensor, labels: Tensor, path: Path, *, steps: int) -> None:
    """Draw the codes of one task's images before and after adaptation to them, on their first two principal axes.

    Args:
        learners: of `ClusteringAutoencoder`s, by name.
        images: of one task, [N, C, H, W].
        labels: of the images [N]: the colours; nobody adapts to them.
        path: the PNG to write.
        steps: inner steps.

    Raises:
        RuntimeError: without Matplotlib (`pip install "fastmeta[train]"`).
    """
    figure = new_figure(figsize=(3.4 * len(learners) + 0.4, 6.6))
    panels = figure.subplots(2, len(learners), squeeze=False)
    for column, (name, learner) in enumerate(learners.items()):
        for row, count in enumerate((0, steps)):
            fast = learner.adapt(images[None], images[None], steps=count).parameters()
            model = copy.deepcopy(learner.module)
            model.load_state_dict({key: value[0] for key, value in fast.items()})
            assert isinstance(model, ClusteringAutoencoder)
            codes = model.norm(model.encoder(images))
            mean = codes.mean(0)
            axes_of = torch.linalg.svd(codes - mean, full_matrices=False).Vh[:2].T
            flat, centres = ((part - mean) @ axes_of for part in (codes, model.centres))
            axes = panels[row, column]
            axes.scatter(*flat.T.cpu(), c=labels.cpu(), cmap="tab10", s=18, vmin=0, vmax=9)
            axes.plot(*centres.T.cpu(), "kx", label="cluster centres")
            axes.set_title(f"{name}, {count} steps", fontsize="medium")
            axes.set_xticks([])
            axes.set_yticks([])
    panels[0, 0].legend(fontsize="small", loc="best")
    figure.supxlabel("codes on their two principal axes; colours are classes, which the network does not see")
    figure.savefig(path, dpi=110)


def plot_reliability(calibrations: Mapping[str, Calibration], path: Path) -> None:
    """Draw accuracy over confidence, with the share of predictions in each bin below; one panel a learner.

    Args:
        calibrations: what `expected_calibration_error` gave, by name.
        path: the PNG to write.

    Raises:
        RuntimeError: without Matplotlib (`pip install "fastmeta[train]"`).
    """
    figure = new_figure(figsize=(3.6 * len(calibrations) + 0.4, 4.8))
    panels = figure.subplots(2, len(calibrations), squeeze=False, sharex=True, height_ratios=(3, 1))
    for column, (name, calibration) in enumerate(calibrations.items()):
        accuracy, confidence, count = (x.tolist() for x in calibration[1:])
        bins, seen = len(count), [i for i, n in enumerate(count) if n]
        middles = [(i + 0.5) / bins for i in range(bins)]
        above, below = panels[0, column], panels[1, column]
        above.bar(middles, accuracy, width=1 / bins, color="tab:blue", alpha=0.6, label="accuracy")
        said, right = ([xs[i] for i in seen] for xs in (confidence, accuracy))
        above.vlines(said, right, said, color="tab:red", label="gap to confidence")
        above.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="calibrated")
        above.set_title(f"{name}: error {100 * calibration.error:.1f} %", fontsize="medium")
        below.bar(middles, [n / sum(count) for n in count], width=1 / bins, color="tab:gray")
        below.set_xlabel("confidence")
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("share")
    panels[0, 0].legend(fontsize="small", loc="best")
    figure.savefig(path, dpi=110)


def new_figure(**options: Any) -> Any:
    """An empty figure of Matplotlib.

    Raises:
        RuntimeError: without it; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError('pictures need Matplotlib: pip install "fastmeta[train]"') from error
    return Figure(layout="constrained", **options)
