"""What `fastmeta doctor` looks at: the machine, what Triton kernels do on it, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta import MAML, SGD, __version__
from fastmeta.cache import PLACE
from fastmeta.engine.auto import machine_of
from fastmeta.engine.backends import choose
from fastmeta.engine.backends.base import Planned
from fastmeta.engine.backends.perceptron import NotTaken
from fastmeta.engine.backends.verdicts import VerdictStore
from fastmeta.engine.batch import TaskBatch
from fastmeta.models.few_shot import sinusoid_mlp
from fastmeta.models.siren import siren

Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class Workload:
    """A meta-step of the literature, as `bench/workloads.py` describes it.

    Attributes:
        network: makes it.
        sample: shape of an input.
        classes: of labels; 0: targets are numbers, and `outputs` of them.
        tasks, support, query, steps: T, N, M, K.
        lr: of an inner step.
    """

    network: Callable[[], nn.Module]
    sample: tuple[int, ...]
    tasks: int
    support: int
    query: int
    steps: int
    lr: float
    classes: int = 0
    outputs: int = 0

    def batch(self, tasks: int, device: torch.device) -> TaskBatch:
        """Random tasks: no speed depends on what is on an image."""
        generator = torch.Generator().manual_seed(1)

        def samples(count: int) -> tuple[Tensor, Tensor]:
            x = torch.randn(tasks, count, *self.sample, generator=generator).to(device)
            if self.classes:
                return x, (torch.arange(count) % self.classes).expand(tasks, -1).contiguous().to(device)
            return x, torch.randn(tasks, count, self.outputs, generator=generator).to(device)

        return TaskBatch(*samples(self.support), *samples(self.query))

    def learner(self, device: torch.device, *, tried: bool, precision: Precision) -> MAML:
        """MAML of it; `tried`: with what the first meta-step of new shapes does to find its backend."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.network().to(device)
        loss = F.cross_entropy if self.classes else F.mse_loss
        return MAML(
            model, inner_loss=loss, inner_optimizer=SGD(lr=self.lr), inner_steps=self.steps, precision=precision,
            proof="first" if tried else "off",
        )  # fmt: skip


def _convolutions(inputs: int, channels: int, blocks: int, padding: int, features: int, ways: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for block in range(blocks):
        convolution = nn.Conv2d(channels if block else inputs, channels, 3, padding=padding)
        norm = nn.BatchNorm2d(channels, track_running_stats=False)
        layers += [convolution, norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, ways))


def _sinusoid(tasks: int, steps: int) -> Workload:
    return Workload(sinusoid_mlp, (1,), tasks, 10, 10, steps, 0.01, outputs=1)


def _omniglot(ways: int, tasks: int, query: int, steps: int) -> Workload:
    network = partial(_convolutions, 1, 64, 4, 1, 64, ways)
    return Workload(network, (1, 28, 28), tasks, ways, query, steps, 0.1, classes=ways)


def _mini(support: int) -> Workload:
    network = partial(_convolutions, 3, 32, 4, 1, 800, 5)
    return Workload(network, (3, 84, 84), 4, support, 75, 5, 0.05, classes=5)


WORKLOADS = {
    "sinusoid": _sinusoid(25, 5),
    "sinusoid-k1": _sinusoid(25, 1),
    "sinusoid-1k": _sinusoid(1000, 5),
    "sinusoid-10k": _sinusoid(10_000, 5),
    "omniglot-5w1s": _omniglot(5, 8, 25, 1),
    "omniglot-20w1s": _omniglot(20, 32, 20, 5),
    "torchbench-maml": Workload(
        partial(_convolutions, 1, 64, 3, 0, 64, 5), (1, 28, 28), 32, 25, 75, 5, 0.1, classes=5
    ),
    "mini-5w1s": _mini(5),
    "mini-5w5s": _mini(25),
    "siren-64": Workload(siren, (2,), 16, 4096, 4096, 3, 0.01, outputs=3),
}  # fmt: skip
"""Those of the benchmark whose networks need no other package; its tests hold the two tables together."""


class Examined(NamedTuple):
    """What is known of a workload's program: whether kernels take it, what "auto" chooses, and why."""

    name: str
    kernels: str  # "yes", or why not
    backend: str
    why: str
    details: tuple[str, ...]
    failed: bool


def examine(name: str, device: torch.device, *, precision: Precision = "float32") -> Examined:
    """Plans a workload, and on a GPU tries its kernels beside torch ops, as a first meta-step does."""
    workload, gpu = WORKLOADS[name], _runs_kernels(device)
    try:
        learner = workload.learner(device, tried=gpu, precision=precision if gpu else "float32")
        backend = learner.session(workload.batch(workload.tasks if gpu else 1, device)).backend
    except torch.OutOfMemoryError:
        return Examined(name, "unknown", "none", "it does not fit into the device's memory", (), False)
    except ValueError as error:  # bfloat16, and kernels that do not run
        return Examined(name, "unknown", "none", str(error), (), True)
    assert isinstance(backend, Planned), "networks of known layers have plans"
    try:
        choose.graph_of(backend.engine)
        kernels = "yes"
    except NotTaken as reason:
        kernels = f"no: {reason}"
    except ImportError:
        kernels = "unknown, as Triton cannot be imported"
    found = backend.choice
    return Examined(name, kernels, found.backend, found.why, found.details, found.failed)


def missing(device: torch.device) -> Iterator[str]:
    """What keeps fastmeta from running at its best here, and what to do about it."""
    if torch.version.cuda is None and _has_nvidia_gpu():
        yield "there is an NVIDIA GPU, and this PyTorch is a build for CPUs: install one for CUDA (pytorch.org)"
    elif torch.version.cuda is not None and _has_nvidia_gpu() and not torch.cuda.is_available():
        yield "there is an NVIDIA GPU, and PyTorch cannot use it: the driver is too old, or the GPU hidden or in use"
    if _runs_kernels(device) and (problem := _triton_problem()):
        yield f"{problem}: kernels need it (pip install triton)"
    if _runs_kernels(device) and not _compiler():
        yield "there is no C compiler (gcc, clang or $CC), which Triton starts its kernels through: install one"
    if _runs_kernels(device) and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        yield "TRITON_INTERPRET is set, so that no kernel runs on the GPU: unset it"
    problem = VerdictStore().try_to_write()
    if problem:
        yield f"nothing can be kept on disk, and every process tries kernels anew: {problem}. Set {PLACE} to a folder"


def _runs_kernels(device: torch.device) -> bool:
    return device.type in choose.KERNEL_DEVICES


def _has_nvidia_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _triton_problem() -> str:
    """Why there is no Triton; empty where there is."""
    try:
        import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return ""


def _compiler() -> str:
    return os.environ.get("CC", "") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "")


def described(device: torch.device) -> Iterator[tuple[str, str]]:
    """The machine, line by line: titles and texts."""
    facts, versions = machine_of(device)
    store = VerdictStore()
    yield "fastmeta", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    build = f"for CUDA {versions['cuda']}" if torch.version.cuda else "a build for CPUs"
    yield "torch", f"{versions['torch']}, {build}"
    yield "triton", versions["triton"] or "not installed"
    if device.type == "cuda":
        size = facts["memory"] / 2**30
        major, minor = facts["capability"]
        sm = f"sm_{major}{minor}, {facts['multiprocessors']} multiprocessors"
        yield "device", f"{facts['name']}, {sm}, {size:.0f} GiB"
        driver = versions["driver"]
        known = f"for CUDA {int(driver) // 1000}.{int(driver) % 1000 // 10}" if driver.isdigit() else "not known"
        yield "driver", known
    else:
        yield "device", f"{device}: no GPU is used here, so that plain torch ops run every program"
    yield "C compiler", _compiler() or "none"
    files = store.files()
    size = sum(state.st_size for _, state in files) / 1024
    yield "cache", f"{store.folder or 'none'}: {len(files)} verdict(s), {size:.0f} KiB"
