"""Slices of a meta-batch side by side on a CPU, one thread each, instead of all threads in every operation.

Tasks are independent, so the threads need not meet before the end; inside operations they meet after every one, and
those of small tasks are too short to share: 25 sinusoids take as long on two threads as on one. Where calls spend their
time in Python, which one thread runs at a time, that turns round; `backends` says from which size on.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def side_by_side(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """[call() for call in calls], without autograd, on `torch.get_num_threads()` threads.

    The calls must not touch anything that they share; operations in them run on one thread. The caller's thread works
    along. An exception of one of the calls is raised after the others have ended.
    """
    threads = torch.get_num_threads()
    waiting = deque(range(len(calls)))
    results: list[Any] = [None] * len(calls)

    @torch.no_grad()
    def work() -> None:
        while True:
            try:
                i = waiting.popleft()
            except IndexError:
                return
            results[i] = calls[i]()

    helpers = [_pool(threads - 1).submit(work) for _ in range(min(threads, len(calls)) - 1)]
    torch.set_num_threads(1)  # of this thread
    try:
        work()
    finally:
        wait(helpers)
        torch.set_num_threads(threads)
    for helper in helpers:
        helper.result()
    return results


def _pool(size: int) -> ThreadPoolExecutor:
    key = os.getpid(), size  # a forked process has none of its parent's threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(size, "fastmeta", initializer=torch.set_num_threads, initargs=(1,))
    return _pools[key]
