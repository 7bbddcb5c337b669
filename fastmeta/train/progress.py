"""A progress bar on a terminal, plain lines elsewhere; both on standard error."""

from __future__ import annotations

import importlib.util
import sys
import time

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows how far a loop is.

    Args:
        total: iterations in all.
        done: iterations that an earlier run has done.

    The bar needs tqdm (`pip install "fastmeta[train]"`); without it there are lines.
    """

    def __init__(self, total: int, *, done: int = 0) -> None:
        self._total, self._done, self._last = total, done, time.monotonic()
        self._bar = None
        if sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None:
            import tqdm

            self._bar = tqdm.tqdm(total=total, initial=done, unit="it", dynamic_ncols=True)

    def advance(self, done: int) -> None:
        """`done` iterations are over."""
        if self._bar is not None:
            self._bar.update(done - self._done)
        self._done = done

    def restart(self, total: int) -> None:
        """Another loop begins, of so many iterations."""
        self._total, self._done = total, 0
        if self._bar is not None:
            self._bar.reset(total)

    def status(self, text: str) -> None:
        """Beside the bar, or on a line of its own unless the last one is recent."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last = time.monotonic()
            self.say(f"{self._done}/{self._total}  {text}")

    def say(self, message: str) -> None:
        """One line, above the bar."""
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            sys.stderr.write(message + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
