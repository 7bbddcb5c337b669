"""What needs a GPU, in two commands of six minutes on a bare machine: each step a process of its own with its own time.

The first command says whether the kernels are right and how fast the headline meta-steps are, the second, to be started
after a look at the first, measures the rest. A step that fails, hangs or brings its process down is a line of the
table, and the next one begins. After every step all that is known so far lies in one tar. The steps run this checkout:
links to `fastmeta` with `kernels` inside it, as an installation would lay them, stand first on their path.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import child, environment
from .checkout import checkout_on_path
from .gpu_files import Folder, tests_of
from .gpu_steps import Call, Step
from .records import FORMAT, without_folders

LEAST_S = 5
"""A step that would have less time is left out."""
INTERRUPT_S = 5
"""Before it is killed, a step is asked to end, and writes what it has."""


@dataclass(frozen=True)
class Outcome:
    """How a step ended: "ok", "failed", "time limit", "skipped" (it cannot run here) or "left out" (no time)."""

    step: str
    status: str
    seconds: float
    message: str = ""
    output: str = ""
    errors: str = ""


@dataclass(frozen=True)
class Settings:
    """Of a command.

    Attributes:
        command: "first", "second", or "parts" where steps are chosen by name.
        limit_s: of all steps together.
        commit: of this checkout, where git cannot tell: what travels to a GPU may be files alone.
    """

    command: str
    out: Path
    limit_s: float
    device: str = "cuda"
    quick: bool = False
    wheels: Path | None = None
    commit: str | None = None


def run(steps: Mapping[str, Step], settings: Settings) -> int:
    """Runs the steps in turn, and leaves gpu-COMMAND.tar, .json and .md in `settings.out`, rewritten after each.

    Returns:
        0 where every step ended well, else 1.
    """
    where = environment.describe() | ({} if settings.commit is None else {"commit": settings.commit})
    result: dict[str, Any] = {
        "format": FORMAT, "command": settings.command, "environment": where, "nvidia-smi": nvidia_smi(), "steps": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="fastmeta-gpu-") as work:
        folder = Folder(Path(work), settings.out.resolve(), settings.command)
        with checkout_on_path(wheels=settings.wheels) as variables, _ended_politely():
            runner = _Runner(settings, folder, _variables(variables, settings))
            for outcome in runner.outcomes(steps):
                print(f"{outcome.step:20} {outcome.status:10} {outcome.seconds:5.0f} s  {outcome.message}", flush=True)
                result["steps"].append(asdict(outcome))
                folder.keep(result)
        print("\n" + folder.keep(result))
    # once more, for whoever sees the end of a long output alone
    print("\n".join(f"{step['step']:20} {step['status']:10} {step['message']}" for step in result["steps"]))
    ended_well = all(step["status"] in ("ok", "skipped") for step in result["steps"])
    return 0 if ended_well and len(result["steps"]) == len(steps) else 1


class _Runner:
    """Steps in turn, and beside them those that run beside others."""

    def __init__(self, settings: Settings, folder: Folder, variables: Mapping[str, str]) -> None:
        self._settings, self._folder, self._variables = settings, folder, variables
        self._until = time.monotonic() + settings.limit_s
        self._stop = threading.Event()
        self._beside: list[Future[Outcome]] = []

    def outcomes(self, steps: Mapping[str, Step]) -> Iterator[Outcome]:
        """As they end."""
        with ThreadPoolExecutor(max(1, sum(step.beside for step in steps.values()))) as threads:
            try:
                for name, step in steps.items():
                    if step.beside:
                        self._beside.append(threads.submit(self._run, name, step))
                    else:
                        yield self._run(name, step)
                    yield from self._ended()
                while self._beside:
                    time.sleep(0.1)
                    yield from self._ended()
            except KeyboardInterrupt:
                print("interrupted: the steps that are left do not run", flush=True)
            finally:
                self._stop.set()
        yield from self._ended()

    def _ended(self) -> list[Outcome]:
        ended = [future for future in self._beside if future.done()]
        self._beside = [future for future in self._beside if future not in ended]
        return [future.result() for future in ended]

    def _run(self, name: str, step: Step) -> Outcome:
        """One step, within its own time and what is left of everyone's."""
        left_s = self._until - time.monotonic()
        if left_s < LEAST_S:
            return Outcome(name, "left out", 0.0, f"{max(0, left_s):.0f} s were left")
        limit_s = min(step.limit_s, left_s)
        try:
            call = Call(self._settings.device, self._settings.quick, self._folder.out_of(name, step), limit_s)
            ended = child.run(
                (sys.executable, *step.command(call)), limit_s=limit_s, variables=self._variables,
                interrupt_s=INTERRUPT_S, stopped=self._stop.is_set, log=self._folder.log_of(name),
            )  # fmt: skip
        except Exception as error:  # the next step runs
            return Outcome(name, "failed", 0.0, without_folders(f"{type(error).__name__}: {error}"))
        status = "time limit" if ended.timed_out else {0: "ok", child.SKIPPED: "skipped"}.get(ended.status, "failed")
        message = "" if status == "ok" else without_folders(ended.reason())
        tests = None if step.measures else tests_of(call.out)
        if tests is not None:
            counts = ", ".join(f"{tests[kind]} {kind}" for kind in ("passed", "failed", "skipped") if tests[kind])
            message = f"{counts}; {message}" if status == "time limit" else counts
            status = "skipped" if status == "ok" and not tests["passed"] else status
        outcome = Outcome(name, status, round(ended.seconds, 1), message)
        if status in ("ok", "skipped"):
            return outcome
        return replace(outcome, output=_end(ended.output), errors=_end(ended.errors))


def _end(text: str) -> str:
    """As much as a summary wants to hold; the log has the rest."""
    return "\n".join(without_folders(line) for line in text.splitlines()[-40:])


def _variables(checkout: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Of all steps: one cache of compiled kernels, and on a CPU Triton's interpreter."""
    cache = os.environ.get("TRITON_CACHE_DIR", str(environment.ROOT / ".pytest_cache" / "triton"))
    # a hundred processes import the checkout: its byte code is kept
    own = {"TRITON_CACHE_DIR": cache, "PYTHONDONTWRITEBYTECODE": ""}
    interpreted = {"TRITON_INTERPRET": "1"} if settings.device == "cpu" else {}
    commit = {} if settings.commit is None else {environment.COMMIT: settings.commit}
    return {**checkout, **own, **interpreted, **commit}


@contextmanager
def _ended_politely() -> Iterator[None]:
    """SIGTERM is an interrupt: what is known is written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before: Any = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def nvidia_smi() -> str:
    """Name, driver, clocks and power limit, or why they are not known."""
    fields = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"not known: {type(error).__name__}"
