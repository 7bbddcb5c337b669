"""Is a meta-step slower than the loop it replaces? Both timed in turn on real networks: `python -m bench loop`.

The loop is what a user of plain PyTorch writes: one task at a time, `functional_call` and `torch.autograd.grad`. The
figure is the ratio of the medians, fastmeta's to the loop's; beside it stand the smallest and the largest ratio of one
round. Where the meta-gradients differ there is nothing to compare, and the row says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmeta

from . import device as devices
from . import environment
from .gate import relative
from .loop_models import CASES, Case
from .records import FORMAT, write
from .timing import interleave

ALIKE = 2e-3
"""Relative difference of float32 meta-gradients up to which both do the same; a wrong one is off by percents."""

BARS = {"MobileNetV2": 0.7, "opaque ops": 1.1, "task by task": 1.1}
"""The largest ratio that passes, where it is other than 1."""

LEARNERS = {"maml": fastmeta.MAML, "fomaml": fastmeta.FOMAML}


def plain_loop(case: Case, steps: int, *, exact: bool) -> Callable[[], Tensor]:
    """A meta-step in plain PyTorch; gives the meta-gradient, flat."""
    model, loss, (sx, sy, qx, qy) = case.model, case.loss, case.batch
    theta = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tasks = sx.shape[0]
    # of attention, PyTorch can differentiate the plain form alone twice
    attention = (lambda: sdpa_kernel(SDPBackend.MATH)) if exact else nullcontext

    def step() -> Tensor:
        model.zero_grad()
        with attention():
            every_task()
        return _gradient(theta)

    def every_task() -> None:
        for t in range(tasks):
            fast: dict[str, Tensor] = dict(theta)
            for _ in range(steps):
                support = loss(functional_call(model, fast, (sx[t],)), sy[t])
                # `create_graph` alone makes first-order MAML exact
                slopes = torch.autograd.grad(support, list(fast.values()), create_graph=exact, allow_unused=True)
                fast = {n: p if g is None else p - case.lr * g for (n, p), g in zip(fast.items(), slopes, strict=True)}
            (loss(functional_call(model, fast, (qx[t],)), qy[t]) / tasks).backward()

    return step


def meta_step(case: Case, steps: int, algorithm: str, *, compile: bool = False) -> Callable[[], Tensor]:
    """The same by fastmeta."""
    learner = LEARNERS[algorithm](
        case.model, inner_loss=case.loss, inner_optimizer=fastmeta.SGD(lr=case.lr), inner_steps=steps, compile=compile
    )
    theta = {name: p for name, p in case.model.named_parameters() if p.requires_grad}

    def step() -> Tensor:
        case.model.zero_grad()
        learner(*case.batch).loss.backward()
        return _gradient(theta)

    return step


def _gradient(theta: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in theta.values()])


def run(
    *, models: Iterable[str], algorithms: Sequence[str], steps: Sequence[int], rounds: int, budget_s: float,
    device: str, threads: int, out: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Measure, printing a line for each comparison; the file at `out` is rewritten after every one.

    Returns:
        What the file holds: environment, commit and rows.
    """
    devices.check_device(device)
    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": environment.describe(device),
        "threads": threads,
        "commit": environment.commit_of(),
        "loop": [],
    }
    for model in models:
        for algorithm in algorithms:
            for count in steps:
                row = compare(model, algorithm, count, device=device, rounds=rounds, budget_s=budget_s)
                result["loop"].append(row)
                print(*_cells(row), sep="  ", flush=True)
                if out is not None:
                    write(result, out)
    return result


def compare(model: str, algorithm: str, steps: int, *, device: str, rounds: int, budget_s: float) -> dict[str, Any]:
    """One row; a package that is missing or a failure is its result."""
    row: dict[str, Any] = {"model": model, "algorithm": algorithm, "steps": steps, "device": device}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            case = CASES[model]()
        case.model.to(device)
        case = case._replace(batch=tuple(x.to(device) for x in case.batch))
        ours, loop = meta_step(case, steps, algorithm), plain_loop(case, steps, exact=algorithm == "maml")
        difference = relative(ours(), loop())
    except ModuleNotFoundError as missing:
        return row | {"status": "skipped", "message": f"needs {missing.name}, which is not installed"}
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    figures = interleave({"fastmeta": ours, "loop": loop}, rounds=rounds, budget_s=budget_s, wait=wait)
    for name, found in figures.items():
        if isinstance(found, Exception):
            return row | {"status": "failed", "message": f"{name}: {found}"}
    row |= {"status": "ok", "message": "", "difference": difference, **_ratios(figures["fastmeta"], figures["loop"])}
    if not difference <= ALIKE:  # NaN neither
        row |= {"status": "differs", "message": f"meta-gradients differ by {difference:.1e}, allowed {ALIKE:.1e}"}
    return row


def _ratios(ours: Any, loop: Any) -> dict[str, Any]:
    rounds = [a / b for a, b in zip(ours, loop, strict=False)]
    return {
        "ratio": statistics.median(ours) / statistics.median(loop), "ratio min": min(rounds), "ratio max": max(rounds),
        "fastmeta ms": [1e3 * s for s in ours], "loop ms": [1e3 * s for s in loop],
    }  # fmt: skip


HEAD = ("model", "algorithm", "K", "plain loop, ms", "fastmeta, ms", "fastmeta / loop (min–max)", "bar")


def table(result: Mapping[str, Any]) -> list[str]:
    """Markdown lines."""
    lines = [f"Commit {result['commit']}, {result['threads']} thread(s).", "", f"| {' | '.join(HEAD)} |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    return [*lines, *(f"| {' | '.join(_cells(row))} |" for row in result["loop"]), ""]


def _cells(row: Mapping[str, Any]) -> list[str]:
    what, bar = [row["model"], row["algorithm"], str(row["steps"])], f"{BARS.get(row['model'], 1.0):.1f}"
    if "ratio" not in row:
        return [*what, f"{row['status']}: {row['message']}", "", "", bar]
    ms = [f"{statistics.median(row[f'{side} ms']):.3g}" for side in ("loop", "fastmeta")]
    ratio = f"{row['ratio']:.2f} ({row['ratio min']:.2f}–{row['ratio max']:.2f})"
    return [*what, *ms, ratio if row["status"] == "ok" else f"{ratio}, {row['message']}", bar]
