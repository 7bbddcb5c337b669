"""Did a change cost speed? Meta-steps of two checkouts of fastmeta, timed in turn: `python -m bench before-after`.

Each checkout runs in a process of its own, which stays. Networks and batches are made once, by this checkout's
workloads, and handed to both as a file, so that both do the same meta-step with the same weights on the same data;
where the meta-gradients differ there is nothing to compare, and the row says so. Rounds alternate, before and after,
after and before, so that drift of the machine meets both alike: one waits while the other is timed. The figure is the
ratio of the medians; beside it stand the smallest and the largest ratio of one round.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import device as devices
from . import environment
from .checkout import checkout_on_path
from .gate import relative
from .networks import LOSSES
from .records import FORMAT, write
from .timing import MIN_BLOCK_S
from .workloads import WORKLOADS, Workload

ALIKE = 1e-3
"""Relative difference of float32 meta-gradients up to which both sides do the same; a wrong one is off by percents."""


class Failed(Exception):
    """One side could not do what was asked of it; the message says which and why."""


class Side:
    """A process in which one checkout's meta-steps run."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name, self.process = name, process

    def read(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            Failed: it is an error, or the process has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"{self.name}: the process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """One request and its answer; raises as `read`."""
        assert self.process.stdin is not None
        try:
            print(json.dumps([request, arguments]), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Failed(f"{self.name}: the process ended with status {self.process.wait()}") from None
        return self.read()


@contextmanager
def started(name: str, root: Path, threads: int) -> Iterator[Side]:
    """A process on a checkout, ended behind the block; its compiler's cache is its own, and empty at first.

    Raises:
        ValueError: `root` is no checkout, or another fastmeta was imported.
    """
    root = root.resolve()
    if not ((root / "fastmeta/__init__.py").is_file() and (root / "kernels").is_dir()):
        raise ValueError(f"--{name} must be a checkout of fastmeta, with its folders fastmeta and kernels; got {root}")
    with tempfile.TemporaryDirectory(prefix="bench-compiled-") as cache, checkout_on_path(root) as variables:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.before_after_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables, "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": cache},
        )  # fmt: skip
        try:
            side = Side(name, process)
            where = Path(side.read()["fastmeta"])
            if not where.is_relative_to(root):
                raise ValueError(f"--{name}: fastmeta was imported from {where}, not from {root}")
            yield side
        finally:
            process.kill()
            process.communicate()


def run(
    *,
    before: Path,
    after: Path,
    workloads: Iterable[str],
    algorithms: Sequence[str],
    paths: Sequence[str],
    rounds: int,
    device: str,
    threads: int,
    small: bool,
    out: Path | None,
) -> dict[str, Any]:
    """Measure, printing a line for each comparison; the file at `out` is rewritten after every one.

    Returns:
        What the file holds: environment, both commits and rows.
    """
    devices.check_device(device)
    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": environment.describe(device),
        "threads": threads,
        "commits": {"before": environment.commit_of(before), "after": environment.commit_of(after)},
        "before after": [],
    }
    with (
        started("before", before, threads) as first,
        started("after", after, threads) as second,
        tempfile.TemporaryDirectory(prefix="bench-cases-") as folder,
    ):
        for name in workloads:
            workload = WORKLOADS[name].sized_for(device)
            workload = workload.small() if small else workload
            for algorithm in algorithms:
                for path in paths:
                    row = compare((first, second), workload, algorithm, path, device, rounds, Path(folder))
                    result["before after"].append(row)
                    print(*_cells(row), sep="  ", flush=True)
                    if out is not None:
                        write(result, out)
    return result


def compare(
    sides: tuple[Side, Side], workload: Workload, algorithm: str, path: str, device: str, rounds: int, folder: Path
) -> dict[str, Any]:
    """One row; a failure is its result."""
    row: dict[str, Any] = {
        "workload": workload.name,
        "sizes": {"T": workload.tasks, "N": workload.support, "M": workload.query, "K": workload.steps},
        "algorithm": algorithm, "path": path, "device": device,
    }  # fmt: skip
    file = folder / "case.pt"
    torch.save(
        {"model": workload.model(), "batch": tuple(workload.batch()), "loss": LOSSES[workload.loss],
         "lr": workload.lr, "steps": workload.steps}, file,
    )  # fmt: skip
    gradients = {side.name: folder / f"{side.name}.pt" for side in sides}
    try:
        opened = {
            side.name: side.ask(
                "open", file=str(file), gradient=str(gradients[side.name]), algorithm=algorithm,
                compile=path == "compiled", device=device,
            )
            for side in sides
        }  # fmt: skip
        difference = relative(*(torch.load(gradients[side.name]) for side in reversed(sides)))
        calls = math.ceil(MIN_BLOCK_S / min(answer["s"] for answer in opened.values()))
        ms: dict[str, list[float]] = {side.name: [] for side in sides}
        for index in range(rounds):
            for side in sides if index % 2 == 0 else reversed(sides):
                ms[side.name].append(1e3 * side.ask("time", calls=calls)["s"])
    except Failed as failure:
        return row | {"status": "failed", "message": str(failure)}
    first_calls = {f"{name} first call s": round(answer["first call s"], 3) for name, answer in opened.items()}
    row |= {"status": "ok", "message": "", "difference": difference, **first_calls, **ratios(**ms)}
    if not difference <= ALIKE:  # NaN neither
        row |= {"status": "differs", "message": f"meta-gradients differ by {difference:.1e}, allowed {ALIKE:.1e}"}
    return row


def ratios(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Of the medians, and the smallest and largest of one round; milliseconds of every round beside them."""
    rounds = [b / a for a, b in zip(before, after, strict=True)]
    return {
        "ratio": statistics.median(after) / statistics.median(before),
        "ratio min": min(rounds),
        "ratio max": max(rounds),
        "before ms": list(before),
        "after ms": list(after),
    }


HEAD = ("workload", "algorithm", "path", "before, ms", "after, ms", "after / before (min–max)", "gradients differ by")


def table(result: Mapping[str, Any]) -> list[str]:
    """Markdown lines."""
    commits = result["commits"]
    lines = [f"Before: commit {commits['before']}; after: commit {commits['after']}.", ""]
    lines += [f"| {' | '.join(HEAD)} |", "| --- | --- | --- | ---: | ---: | ---: | ---: |"]
    return [*lines, *(f"| {' | '.join(_cells(row))} |" for row in result["before after"]), ""]


def _cells(row: Mapping[str, Any]) -> list[str]:
    sizes = ", ".join(f"{letter}={count}" for letter, count in row["sizes"].items())
    what = [f"{row['workload']} ({sizes})", row["algorithm"], row["path"]]
    if row["status"] == "failed":
        return [*what, f"failed: {row['message']}", "", "", ""]
    before, after = (f"{statistics.median(row[f'{side} ms']):.3g}" for side in ("before", "after"))
    ratio = f"{row['ratio']:.3f} ({row['ratio min']:.3f}–{row['ratio max']:.3f})"
    return [*what, before, after, ratio, f"{row['difference']:.1e}" + ("" if row["status"] == "ok" else ", too much")]
