"""What a result needs beside it to be read later: machine, versions, commit. No host name, no path."""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("torch", "triton", "numpy", "jax", "jaxlib", "higher", "torchopt", "learn2learn")
ROOT = Path(__file__).resolve().parents[1]
COMMIT = "BENCH_COMMIT"
"""The variable that names the commit where files alone have travelled, without git's folder."""


def limit_threads(threads: int) -> None:
    """Give every library the same processors. Call it before importing any of them.

    The variables serve OpenMP and BLAS. JAX's thread pool reads none, but is as large as the set of
    processors the process may run on.

    Raises:
        ValueError: fewer processors than threads.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(allowed):
        raise ValueError(f"threads must be between 1 and {len(allowed)}, the processors of this process, got {threads}")
    os.sched_setaffinity(0, allowed[:threads])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def choose_device(device: str) -> None:
    """Tell JAX where to run. Call it before importing it. On a GPU it shares the memory with PyTorch."""
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def interpret_kernels() -> None:
    """Have Triton's kernels run in its interpreter, in this process. Call it before importing `fastmeta.kernels`."""
    os.environ["TRITON_INTERPRET"] = "1"


def empty_compiler_cache() -> None:
    """A new folder for what torch.compile keeps, removed at the end: a first call then takes what a new user waits."""
    folder = tempfile.mkdtemp(prefix="bench-compiled-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def describe(device: str = "cpu") -> dict[str, object]:
    """Machine, its load, versions and commit, as they stand in every result file."""
    return {
        **(_gpu() if device == "cuda" else {}),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores used": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "openmp wait policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "busy before": busy_processors(),
        "commit": commit_of(),
    }


def busy_processors(seconds: float = 1.0) -> float | None:
    """How many of the machine's processors others keep busy while this process sleeps; None where nobody tells.

    The load average would not do: it remembers the measurement that has just ended.
    """
    first = _processor_ticks()
    time.sleep(seconds)
    then = _processor_ticks()
    if first is None or then is None or then[1] == first[1]:
        return None
    idle, every = then[0] - first[0], then[1] - first[1]
    return round((1 - idle / every) * (os.cpu_count() or 1), 2)


def _processor_ticks() -> tuple[int, int] | None:
    """(idle, all) of all processors since the machine started. Waiting for a disk is idle; stolen time is not."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]
    except OSError:
        return None
    ticks = [int(field) for field in fields]
    return ticks[3] + ticks[4], sum(ticks)


def _gpu() -> dict[str, object]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu memory GiB": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit_of(root: Path = ROOT) -> str:
    """Hash of a checkout's HEAD, with `+changes` where tracked files differ from it; of this one, what COMMIT says."""
    if root == ROOT and os.environ.get(COMMIT):
        return os.environ[COMMIT]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root.resolve():
            return "unknown"  # a folder inside another project
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
