"""A learned optimiser on its own task: `python -m bench learned-optimizer`.

It is meta-trained on random quadratics, as in section 3.1 of Andrychowicz et al. 2016, and then minimises new ones,
beside SGD, RMSprop and Adam of torch.optim, each with the step size of a grid that has the least final loss on training
functions. The sizes of all of this are our own choice.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastmeta
from fastmeta.tasks import Episodes, QuadraticModel, Quadratics, sum_of_squares
from fastmeta.train.progress import Progress

from . import environment
from .records import FORMAT, write

LEARNED = "learned optimiser"
PEERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD, "RMSprop": torch.optim.RMSprop, "Adam": torch.optim.Adam,
}  # fmt: skip
GRID = tuple(10 ** (k / 8) for k in range(-28, 5))
"""Step sizes, 3.2e-4 to 3.2, eight a decade."""
COLOURS = {LEARNED: "#08306b", "SGD": "#7f7f7f", "RMSprop": "#2ca02c", "Adam": "#ff7f0e"}


@dataclass(frozen=True)
class Settings:
    """Of a run.

    Attributes:
        iterations: batches of training functions, each optimised for `steps` steps in pieces of `unroll`, with an outer
            step of Adam after every piece.
        functions: training functions of a batch.
        steps, unroll: inner steps on a function, and of a piece.
        lr: of the outer Adam at first; it falls to a tenth along a cosine.
        hidden, p, scale: of `fastmeta.LearnedOptimizer`.
        dimensions: of a function.
        validation: how many functions say which weights to keep.
        tuning, testing: how many functions the peers' step sizes are tuned on, and how many new ones all are scored on;
            of the former many, as a step size at which one in a thousand diverges has an infinite mean loss.
        seed: of weights and functions.
    """

    iterations: int = 800
    functions: int = 16
    steps: int = 100
    unroll: int = 20
    lr: float = 3e-3
    hidden: tuple[int, ...] = (20, 20)
    p: float | None = None
    scale: float = 1.0
    dimensions: int = 10
    validation: int = 512
    tuning: int = 8192
    testing: int = 4096
    seed: int = 0


def run(settings: Settings, *, threads: int, out: Path | None, figure: Path | None) -> dict[str, Any]:
    """Train, tune, score; progress on standard error.

    Returns:
        What the file at `out` holds: environment, commit, settings, and of every optimiser its step size and its loss
        after 0 to `steps` steps, mean over the new functions with half the width of its 95 % interval. Of the peers
        also how much larger their final loss is, function by function: "ahead", mean and half width.
    """
    start = time.monotonic()
    result: dict[str, Any] = {
        "format": FORMAT, "environment": environment.describe("cpu"), "threads": threads,
        "commit": environment.commit_of(),
    }  # fmt: skip
    family = Quadratics(dimensions=settings.dimensions)
    seeds = [torch.Generator().manual_seed(10 * settings.seed + i) for i in range(4)]
    tuning, testing = family.sample(settings.tuning, seeds[0]), family.sample(settings.testing, seeds[1])
    validation = family.sample(settings.validation, seeds[2])
    learner = trained(settings, family, seeds[3], validation)
    ours = losses_of_learned(learner, testing, settings.steps)
    curves: dict[str, Any] = {LEARNED: {"lr": None, **curve(ours)}}
    for name, make in PEERS.items():
        lr = tuned(make, tuning, settings.steps)
        theirs = losses_of(make, lr, testing, settings.steps)
        ahead = curve((theirs - ours)[:, -1:])
        curves[name] = {"lr": lr, "ahead": [ahead["mean"][0], ahead["half"][0]], **curve(theirs)}
    seconds = round(time.monotonic() - start, 1)
    result["learned optimizer"] = {"settings": asdict(settings), "seconds": seconds, "curves": curves}
    if out is not None:
        write(result, out)
    if figure is not None:
        draw(result, figure)
    return result


def trained(
    settings: Settings, family: Quadratics, generator: torch.Generator, validation: Episodes
) -> fastmeta.LearnedOptimizer:
    """A meta-trained learner, with the weights that were best on the validation functions at one of twenty looks."""
    torch.manual_seed(settings.seed)
    learner = fastmeta.LearnedOptimizer(
        QuadraticModel(settings.dimensions), inner_loss=sum_of_squares, inner_steps=settings.unroll,
        hidden=settings.hidden, p=settings.p, scale=settings.scale, backend="torch",
    )  # fmt: skip
    assert learner.learned is not None, "the optimiser is learned"
    outer = torch.optim.Adam(learner.learned.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, settings.iterations, eta_min=settings.lr / 10)
    best, kept, every = math.inf, copy.deepcopy(learner.learned.state_dict()), max(1, settings.iterations // 20)
    progress = Progress(settings.iterations)
    for iteration in range(1, settings.iterations + 1):
        batch, carry = family.sample(settings.functions, generator), None
        for _ in range(settings.steps // settings.unroll):
            result, carry = learner.unroll(batch.support_x, batch.support_y, carry=carry)
            outer.zero_grad()
            result.loss.backward()
            outer.step()
        schedule.step()
        progress.advance(iteration)
        if iteration % every == 0 or iteration == settings.iterations:
            final = losses_of_learned(learner, validation, settings.steps)[:, -1].mean().item()
            if final < best:
                best, kept = final, copy.deepcopy(learner.learned.state_dict())
            progress.status(f"loss after {settings.steps} steps on validation functions {final:.3g}, best {best:.3g}")
    progress.close()
    learner.learned.load_state_dict(kept)
    return learner


@torch.no_grad()
def losses_of_learned(learner: fastmeta.LearnedOptimizer, functions: Episodes, steps: int) -> Tensor:
    """[functions, steps + 1]: the loss of every function after 0, 1, … steps of the learned optimiser."""
    x, y = functions.support_x, functions.support_y
    _, carry = learner.unroll(x, y, steps=0)
    found = [_values(functions, carry.phi)]
    for _ in range(steps):
        _, carry = learner.unroll(x, y, carry=carry, steps=1)
        found.append(_values(functions, carry.phi))
    return torch.stack(found, 1)


def losses_of(make: Callable[..., torch.optim.Optimizer], lr: float, functions: Episodes, steps: int) -> Tensor:
    """The same of one of torch.optim's, which steps all functions' θ as one tensor, coordinate by coordinate."""
    tasks, dimensions = functions.support_x.shape[::2]
    theta = torch.zeros(tasks, dimensions, requires_grad=True)
    optimizer, found = make([theta], lr=lr), []
    for step in range(steps + 1):
        values = _values(functions, theta)
        found.append(values.detach())
        if step < steps:
            optimizer.zero_grad()
            values.sum().backward()
            optimizer.step()
    return torch.stack(found, 1)


def _values(functions: Episodes, theta: Tensor) -> Tensor:
    """‖W θ − y‖² of every function, with θ the first numbers of a row."""
    w, y = functions.support_x, functions.support_y
    return (w @ theta[:, : w.shape[2], None] - y).square().sum((1, 2))


def tuned(make: Callable[..., torch.optim.Optimizer], functions: Episodes, steps: int) -> float:
    """The step size of the grid with the least mean final loss."""

    def final(lr: float) -> float:
        mean = losses_of(make, lr, functions, steps)[:, -1].mean().item()
        return mean if math.isfinite(mean) else math.inf

    best = min(GRID, key=final)
    if best in (GRID[0], GRID[-1]):
        warnings.warn(f"the best step size {best:g} lies at an end of the grid", stacklevel=2)
    return best


def curve(losses: Tensor) -> dict[str, Any]:
    """Mean over functions and half the width of its 95 % interval, at every step."""
    losses = losses.double()
    half = 1.96 * losses.std(0) / math.sqrt(losses.shape[0])
    return {"mean": [float(f"{x:.5g}") for x in losses.mean(0)], "half": [float(f"{x:.3g}") for x in half]}


def beaten(result: Mapping[str, Any]) -> list[str]:
    """The peers whose final loss on new functions is larger, by a mean whose 95 % interval lies above zero."""
    curves = result["learned optimizer"]["curves"]
    return [name for name in PEERS if curves[name]["ahead"][0] > curves[name]["ahead"][1]]


def table(result: Mapping[str, Any]) -> list[str]:
    """Markdown lines."""
    found = result["learned optimizer"]
    curves, settings = found["curves"], found["settings"]
    at = sorted({step for step in (10, 20, 50, settings["steps"]) if step <= settings["steps"]})
    lines = [
        f"‖Wθ − y‖² in {settings['dimensions']} dimensions, mean over {settings['testing']:,} new functions with its "
        f"95 % interval; {found['seconds']:g} s in all.",
        "",
        f"| optimiser | step size | {' | '.join(f'after {step} steps' for step in at)} | more than learned |",
        f"| --- | ---: | {' | '.join('---:' for _ in at)} | ---: |",
    ]
    for name, each in curves.items():
        lr = "" if each["lr"] is None else f"{each['lr']:.3g}"
        cells = [f"{each['mean'][step]:.3g} ± {each['half'][step]:.2g}" for step in at]
        cells.append(f"{each['ahead'][0]:.3g} ± {each['ahead'][1]:.2g}" if "ahead" in each else "")
        lines.append(f"| {name} | {lr} | {' | '.join(cells)} |")
    return [*lines, "", f"The learned optimiser ends below {', '.join(beaten(result)) or 'none of them'}.", ""]


def draw(result: Mapping[str, Any], path: Path) -> None:
    """The losses over the steps, with their intervals.

    Raises:
        RuntimeError: without Matplotlib (`pip install "fastmeta[bench]"`).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError('figures need Matplotlib: pip install "fastmeta[bench]"') from error
    found = result["learned optimizer"]
    settings, curves = found["settings"], found["curves"]
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, each in curves.items():
        label = name if each["lr"] is None else f"{name}, step size {each['lr']:.2g}"
        mean: Sequence[float] = each["mean"]
        low, high = ([m + sign * h for m, h in zip(mean, each["half"], strict=True)] for sign in (-1, 1))
        steps = range(len(mean))
        axes.plot(steps, mean, label=label, color=COLOURS[name], linewidth=2.2 if name == LEARNED else 1.4)
        axes.fill_between(steps, low, high, color=COLOURS[name], alpha=0.18, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("steps on a function")
    axes.set_ylabel("‖Wθ − y‖², mean over new functions")
    axes.set_title(f"{settings['testing']:,} new quadratics in {settings['dimensions']} dimensions", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
