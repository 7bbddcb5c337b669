"""A process of its own with a time limit, whose lines arrive as it prints them and whose end is a result."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import environment

SKIPPED = 77
"""The exit status of what cannot run here and says so (the GNU convention for tests)."""

KEPT = 20_000
"""Characters kept of each stream, from its end."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: its exit status, negative for a signal.
        timed_out: it was ended because its time was over.
        output, errors: the ends of what it printed.
    """

    status: int
    timed_out: bool
    seconds: float
    output: str
    errors: str

    def reason(self) -> str:
        """One line: the last one on its standard error, or the status."""
        if self.timed_out:
            return f"ended after {self.seconds:.0f} s, its time limit"
        if self.status < 0:
            return f"ended by {signal.Signals(-self.status).name}"
        return next(reversed(self.errors.strip().splitlines()), "") or f"ended with status {self.status}"


def run(
    command: Sequence[str],
    *,
    limit_s: float,
    variables: Mapping[str, str] | None = None,
    each_line: Callable[[str], None] = lambda _: None,
) -> Ended:
    """Runs a command in the repository's root, in a process group that ends with it.

    Args:
        limit_s: seconds until the group is killed.
        variables: of the environment, beside this process's own.
        each_line: takes every line of standard output when it comes.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=environment.ROOT, env={**os.environ, **(variables or {})}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    text = {process.stdout.fileno(): "", process.stderr.fileno(): ""}
    pending, timed_out = "", False
    try:
        with selectors.DefaultSelector() as selector:
            for fd in text:
                selector.register(fd, selectors.EVENT_READ)
            while selector.get_map():
                left = start + limit_s - time.monotonic()
                if left <= 0:
                    timed_out = True
                    break
                for key, _ in selector.select(timeout=min(left, 1.0)):
                    chunk = os.read(key.fd, 2**16).decode(errors="replace")
                    if not chunk:
                        selector.unregister(key.fd)
                    text[key.fd] = (text[key.fd] + chunk)[-KEPT:]
                    if key.fd == process.stdout.fileno():
                        *lines, pending = (pending + chunk).split("\n")
                        for line in lines:
                            each_line(line)
                if process.poll() is not None and _silent(selector):
                    break  # a grandchild keeps the pipe open
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    output, errors = (text[stream.fileno()] for stream in (process.stdout, process.stderr))
    process.stdout.close()
    process.stderr.close()
    return Ended(status, timed_out, time.monotonic() - start, output, errors)


def _silent(selector: selectors.BaseSelector) -> bool:
    return bool(selector.get_map()) and not selector.select(timeout=0.2)
