"""Timing in turn: every round runs each function, so that drift of the machine meets all of them alike."""

from __future__ import annotations

import gc
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

MIN_BLOCK_S = 0.05
SETTLE_S = 0.005
MIN_ROUNDS = 3


def interleave(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    budget_s: float,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, list[float] | Exception]:
    """Seconds a call, one figure a round, of each function: A B C, A B C, ...

    A figure is the mean over enough calls to last MIN_BLOCK_S, after untimed calls that let the threads of
    the function before it fall asleep and the caches fill. Garbage of one function is collected before the
    next.

    Args:
        functions: what to time, already called once. Results are dropped.
        rounds: at most so many figures a function.
        budget_s: a function too slow for all rounds within this many seconds leaves the later ones out, but
            not the first MIN_ROUNDS; one whose MIN_ROUNDS take more than twice as long has a single figure, the
            second call's where that alone takes all of the time.
        wait: returns when a device is done.

    Returns:
        The figures, or the exception that ended a function's part.
    """
    results: dict[str, list[float] | Exception] = {}
    calls: dict[str, int] = {}
    quota: dict[str, int] = {}
    for name, function in functions.items():
        try:
            estimate = _seconds(function, 1, wait)
            if estimate < budget_s / MIN_ROUNDS:  # the first may still have tuned something
                estimate = min(estimate, _seconds(function, 1, wait))
        except Exception as error:  # a peer's failure is its result
            results[name] = error
            continue
        if estimate > budget_s:
            results[name], quota[name] = [estimate], 0
            continue
        results[name] = []
        calls[name] = max(1, math.ceil(MIN_BLOCK_S / estimate))
        block_s = max(estimate * calls[name], MIN_BLOCK_S)
        least = MIN_ROUNDS if MIN_ROUNDS * block_s <= 2 * budget_s else 1
        quota[name] = min(rounds, max(least, int(budget_s / block_s)))
    for round_index in range(rounds):
        for name, function in functions.items():
            figures = results[name]
            if isinstance(figures, Exception) or round_index >= quota[name]:
                continue
            try:
                figures.append(block_seconds(function, calls[name], wait))
            except Exception as error:  # a peer's failure is its result
                results[name] = error
    return results


def block_seconds(function: Callable[[], object], calls: int, wait: Callable[[], object] = lambda: None) -> float:
    """Seconds a call, over so many calls, after untimed ones for a moment."""
    gc.collect()
    if calls > 1:
        settled = time.perf_counter() + SETTLE_S
        while time.perf_counter() < settled:
            function()
    return _seconds(function, calls, wait) / calls


def _seconds(function: Callable[[], object], calls: int, wait: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    wait()
    return time.perf_counter() - start


class TooSlow(Exception):
    """Something took longer than it was given."""


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raises TooSlow inside, after so many seconds. Main thread only; a call into C is left to end first."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TooSlow(f"the first call took more than {seconds:g} s")

    before: Any = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
