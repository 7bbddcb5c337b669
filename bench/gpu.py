"""Everything that needs a GPU, in one go and on a bare machine: each part a process of its own with its own time.

A part that fails, hangs or brings its process down is a line of the table, and the next one begins. The parts run this
checkout: links to `fastmeta` with `kernels` inside it, as an installation would lay them, stand first on their path.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import child
from .checkout import checkout_on_path
from .records import FORMAT, without_folders, write

LEAST_S = 5
"""A part that would have less time is left out."""

# Of tests/kernels/test_kernels_gpu.py: each kind of inner loop once, all precisions and stages of one; of convolutions
# every precision, an inner loop of another kind, and odd sizes. And CUDA graphs.
SHORT_TESTS = (
    "(loop and regression and (sinusoid or (float32-1 and (first-order or reptile or momentum or adam or batches))))"
    " or (loop and classification and float32-1 and (tasks or classes)) or random-0-"
    " or (layers and (siren or (float32-1 and (adam or nesterov or samples or classes))))"
    " or (conv and options and (maml or (float32-1 and adam))) or (conv and shapes and float32-1 and odd)"
    " or (cuda_graph and not compile)"
)
GPU_TESTS = ("tests/kernels/test_kernels_gpu.py", "tests/engine/test_cuda_graph_gpu.py")
QUICK_PEERS = ("torch.func vmap", "fastmeta eager", "fastmeta triton")
GPU_PEERS = (
    "torch.func vmap", "torch.func vmap graph", "jax vmap", "higher", "torchopt", "fastmeta eager",
    "fastmeta eager graph", "fastmeta compiled", "fastmeta triton", "fastmeta triton graph",
)  # fmt: skip
IMAGE_PEERS = (*GPU_PEERS, "torch.func loop")
"""`torch.func`'s `vmap` is wrong on batch norm with weights of each task's own, so its loop stands beside it."""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        limit_s: its time.
        command: its arguments to Python, from the device and the file that it is to write.
    """

    limit_s: float
    command: Callable[[str, Path], Sequence[str]]


def _module(name: str, *options: str) -> Callable[[str, Path], Sequence[str]]:
    return lambda device, out: ("-m", f"bench.{name}", "--device", device, "--out", str(out), *options)


def _tests(_: str, out: Path) -> Sequence[str]:
    options = ("-m", "gpu", "-k", SHORT_TESTS, "-W", "default", "-p", "no:cacheprovider", "-rfEs", "--tb=short")
    return ("-m", "pytest", *GPU_TESTS, *options, f"--junit-xml={out.with_suffix('.xml')}")


def _workloads(
    precision: str, workloads: Sequence[str], peers: Sequence[str] = GPU_PEERS
) -> Callable[[str, Path], Sequence[str]]:
    def command(device: str, out: Path) -> Sequence[str]:
        head = ("-m", "bench", "run", "--device", device, "--precision", precision, "--out", str(out))
        if device == "cpu":
            return (*head, "--quick", "--workload", "sinusoid", "--rounds", "1", "--peer", *QUICK_PEERS)
        return (*head, "--workload", *workloads, "--budget", "1", "--patience", "40", "--rounds", "9", "--peer", *peers)

    return command


# The first ones matter most: what is left of the time goes to the last.
PARTS = {
    "ceilings": Part(30, _module("ceilings")),
    "tests": Part(90, _tests),
    "compile": Part(70, _module("compile_ahead", "--limit", "60")),
    "images": Part(
        130,
        _workloads(
            "float32", ("omniglot-20w1s", "torchbench-maml", "mini-5w1s", "omniglot-5w1s", "mini-5w5s"), IMAGE_PEERS
        ),
    ),
    "workloads": Part(60, _workloads("float32", ("sinusoid", "sinusoid-10k", "siren-64", "sinusoid-k1"))),
    "launches": Part(40, _module("launches")),
    "sweep": Part(100, _module("sweep", "--compile-limit", "45")),
    "tf32": Part(
        60, _workloads("tf32", ("sinusoid-10k", "omniglot-20w1s", "torchbench-maml", "mini-5w1s"), IMAGE_PEERS)
    ),
    "bfloat16": Part(60, _workloads("bfloat16", ("sinusoid-10k", "omniglot-20w1s", "mini-5w1s"))),
    "sweep-images": Part(
        400, _module("sweep", "--workload", "omniglot-20w1s", "mini-5w1s", "--compile-limit", "200")
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a part ended: "ok", "failed", "time limit", "skipped" (it cannot run here) or "left out" (no time)."""

    part: str
    status: str
    seconds: float
    message: str = ""
    output: str = ""
    errors: str = ""


def run(
    names: Sequence[str], *, out: Path, limit_s: float, device: str, parts: Mapping[str, Part] = PARTS,
    wheels: Path | None = None,
) -> int:  # fmt: skip
    """Run parts one after another, print the table, and leave gpu.json, a file a part and table.md in `out`.

    Returns:
        0 where every part ended well, else 1.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + limit_s
    result: dict[str, Any] = {"format": FORMAT, "device": device, "nvidia-smi": nvidia_smi(), "parts": []}
    with checkout_on_path(wheels=wheels) as variables:
        for name in names:
            left = deadline - time.monotonic()
            outcome = run_part(name, parts[name], out, device, left, variables)
            print(f"{name:10} {outcome.status:10} {outcome.seconds:5.0f} s  {outcome.message}", flush=True)
            result["parts"].append(asdict(outcome))
            write(result, out / "gpu.json")
    from .gpu_table import table

    text = table(result, out)
    (out / "table.md").write_text(text, encoding="utf-8")
    print("\n" + text)
    return 0 if all(part["status"] in ("ok", "skipped") for part in result["parts"]) else 1


def run_part(name: str, part: Part, out: Path, device: str, left_s: float, variables: Mapping[str, str]) -> Outcome:
    """One part, within its own time and what is left of everyone's."""
    limit_s = min(part.limit_s, left_s)
    if left_s < LEAST_S:
        return Outcome(name, "left out", 0.0, f"{max(0, left_s):.0f} s were left")
    try:
        command = (sys.executable, *part.command(device, out / f"{name}.json"))
        ended = child.run(command, limit_s=limit_s, variables=variables)
    except Exception as error:  # the next part runs
        return Outcome(name, "failed", 0.0, without_folders(f"{type(error).__name__}: {error}"))
    status = "time limit" if ended.timed_out else {0: "ok", child.SKIPPED: "skipped"}.get(ended.status, "failed")
    message = "" if status == "ok" else without_folders(ended.reason())
    return Outcome(name, status, round(ended.seconds, 1), message, ended.output, ended.errors)


def nvidia_smi() -> str:
    """Name, driver, clocks and power limit, or why they are not known."""
    fields = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"not known: {type(error).__name__}"
