"""The picture of the sinusoid run: curves before and after adaptation, beside the truth."""

from __future__ import annotations

from pathlib import Path

import torch

from .algorithms import MetaLearner
from .evaluate import counted_divergence
from .tasks import Sinusoid


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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError('pictures need Matplotlib: pip install "fastmeta[train]"') from error
    generator = torch.Generator(family.device).manual_seed(seed)
    amplitude, phase = family.sample_curves(4, generator)
    x = family.sample_inputs(4, family.shots, generator)
    y = amplitude * torch.sin(x - phase)
    grid = torch.linspace(-5, 5, 201).to(x).view(1, -1, 1).expand(4, -1, 1)
    curves = {count: algorithm.adapt(x, y, steps=count)(grid).squeeze(2).cpu() for count in (0, *steps)}
    truth = (amplitude * torch.sin(grid - phase)).squeeze(2).cpu()

    figure = Figure(figsize=(11, 7), layout="constrained")
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
