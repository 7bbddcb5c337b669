"""Timing in turn: every round runs each function, so that drift of the machine meets all of them alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping

MIN_BLOCK_S = 0.05
SETTLE_S = 0.005
WARM_UP_CALLS = 2
MIN_ROUNDS = 3


def interleave(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, budget_s: float
) -> dict[str, list[float] | Exception]:
    """Seconds a call, one figure a round, of each function: A B C, A B C, ...

    A figure is the mean over enough calls to last MIN_BLOCK_S, after untimed calls that let the threads of
    the function before it fall asleep and the caches fill. Garbage of one function is collected before the
    next.

    Args:
        functions: what to time, already called once. Results are dropped.
        rounds: at most so many figures a function.
        budget_s: a function too slow for all rounds within this many seconds leaves the later ones out, but
            not the first MIN_ROUNDS.

    Returns:
        The figures, or the exception that ended a function's part.
    """
    results: dict[str, list[float] | Exception] = {}
    calls: dict[str, int] = {}
    quota: dict[str, int] = {}
    for name, function in functions.items():
        try:
            estimate = min(_seconds(function, 1) for _ in range(WARM_UP_CALLS))
        except Exception as error:  # a peer's failure is its result
            results[name] = error
            continue
        results[name] = []
        calls[name] = max(1, math.ceil(MIN_BLOCK_S / estimate))
        block_s = max(estimate * calls[name], MIN_BLOCK_S)
        quota[name] = min(rounds, max(MIN_ROUNDS, int(budget_s / block_s)))
    for round_index in range(rounds):
        for name, function in functions.items():
            figures = results[name]
            if isinstance(figures, Exception) or round_index >= quota[name]:
                continue
            try:
                figures.append(_block(function, calls[name]))
            except Exception as error:  # a peer's failure is its result
                results[name] = error
    return results


def _block(function: Callable[[], object], calls: int) -> float:
    gc.collect()
    if calls > 1:
        settled = time.perf_counter() + SETTLE_S
        while time.perf_counter() < settled:
            function()
    return _seconds(function, calls) / calls


def _seconds(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - start
