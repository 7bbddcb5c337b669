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
from pathlib import Path
from typing import Self

from . import environment

SKIPPED = 77
"""The exit status of what cannot run here and says so (the GNU convention for tests)."""

KEPT = 20_000
"""Characters kept of each stream, from its end."""

LOG_BYTES = 2**20
"""Of both streams together, kept in a file from their beginning."""


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
    interrupt_s: float = 0.0,
    stopped: Callable[[], bool] = lambda: False,
    log: Path | None = None,
) -> Ended:
    """Runs a command in the repository's root, in a process group that ends with it.

    Args:
        limit_s: seconds until the group is killed.
        variables: of the environment, beside this process's own.
        each_line: takes every line of standard output when it comes.
        interrupt_s: so many seconds before the limit, or at half of a shorter one, the process is asked to end by
            SIGINT, which Python raises as KeyboardInterrupt: time to write what it has.
        stopped: asked every second; once it says so, the limit is over.
        log: takes both streams as they come, the first LOG_BYTES of them.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=environment.ROOT, env={**os.environ, **(variables or {})}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    timed_out = interrupted = False
    try:
        with _Streams(process, each_line, log) as streams:
            while streams.open:
                left = start + limit_s - time.monotonic()
                if left <= 0 or stopped():
                    timed_out = True
                    break
                if interrupt_s and not interrupted and left <= min(interrupt_s, limit_s / 2):
                    timed_out = interrupted = True
                    with contextlib.suppress(ProcessLookupError):
                        process.send_signal(signal.SIGINT)
                streams.read(min(left, 1.0))
                if process.poll() is not None and streams.silent():
                    break  # a grandchild keeps the pipe open
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    return Ended(status, timed_out, time.monotonic() - start, *streams.ends)


class _Streams:
    """What a process prints: the ends of both streams, every line of the first, and a log."""

    def __init__(self, process: subprocess.Popen[bytes], each_line: Callable[[str], None], log: Path | None) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._files = (process.stdout, process.stderr)
        self._text = ["", ""]
        self._pending = ""
        self._each_line = each_line
        self._selector = selectors.DefaultSelector()
        for place, file in enumerate(self._files):
            self._selector.register(file, selectors.EVENT_READ, place)
        self._log = None if log is None else log.open("wb")
        self._room = LOG_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for file in (*self._files, *(() if self._log is None else (self._log,))):
            file.close()

    @property
    def open(self) -> bool:
        """Whether anyone may still print."""
        return bool(self._selector.get_map())

    @property
    def ends(self) -> tuple[str, str]:
        """The last KEPT characters of each."""
        return self._text[0], self._text[1]

    def read(self, timeout_s: float) -> None:
        """What is there, or what comes within the time."""
        for key, _ in self._selector.select(timeout=timeout_s):
            raw = os.read(key.fd, 2**16)
            if not raw:
                self._selector.unregister(key.fileobj)
            self._write(raw)
            chunk = raw.decode(errors="replace")
            self._text[key.data] = (self._text[key.data] + chunk)[-KEPT:]
            if key.data == 0:
                *lines, self._pending = (self._pending + chunk).split("\n")
                for line in lines:
                    self._each_line(line)

    def silent(self) -> bool:
        """Whether nothing comes though someone could still print."""
        return self.open and not self._selector.select(timeout=0.2)

    def _write(self, raw: bytes) -> None:
        if self._log is None:
            return
        self._log.write(raw[: self._room])
        if self._room and len(raw) >= self._room:
            self._log.write(b"\n(what follows is left out)\n")
        self._room = max(0, self._room - len(raw))
        self._log.flush()
