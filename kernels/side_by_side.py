"""Many jobs at once, each in a process of its own: compiling kernels one by one takes longer than running them.

A job that raises, hangs or brings its process down is a failure of its own. The processes are forks of a server that
has imported what they need and never touches a GPU, so one starts within milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple


class Done(NamedTuple):
    """How a job ended: what it gave, or why it gave nothing."""

    place: int
    result: Any
    failure: str = ""


def side_by_side(
    jobs: Sequence[Callable[[], Any]], *, limit_s: float, processes: int | None = None, preload: Sequence[str] = ()
) -> Iterator[Done]:  # fmt: skip
    """Runs the jobs, so many at a time (default: one a core), and yields each as it ends.

    The server imports torch and the modules of `preload` before it forks; none of them may touch a GPU at import.

    Those that have not ended after `limit_s` seconds are failures, and their processes are killed, as they are when the
    caller stops asking. Jobs and what they give are pickled.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", *preload])
    most = processes or len(os.sched_getaffinity(0))
    until = time.monotonic() + limit_s
    waiting, running = list(enumerate(jobs))[::-1], {}
    try:
        while (waiting or running) and time.monotonic() < until:
            while waiting and len(running) < most:
                place, job = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(job, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = place, process
            for connection in wait([*running], timeout=max(0.0, until - time.monotonic())):
                assert isinstance(connection, Connection)
                place, process = running.pop(connection)
                yield _ended(place, connection, process)
        late = sorted(place for place, *_ in (*running.values(), *waiting))
        yield from (Done(place, None, f"not done within {limit_s:g} s") for place in late)
    finally:
        for connection, (_, process) in running.items():
            process.kill()
            process.join()
            connection.close()


def _ended(place: int, connection: Connection, process: Any) -> Done:
    """What a job sent before its process ended, or how that ended."""
    with connection:
        try:
            done = Done(place, *connection.recv())
        except EOFError:
            process.join()
            return Done(place, None, f"its process ended with status {process.exitcode}")
    process.join()
    return done


def _run(job: Callable[[], Any], connection: Connection) -> None:
    """The process: one thread, as its neighbours have the other cores."""
    import torch

    torch.set_num_threads(1)
    try:
        answer = job(), ""
    except Exception as error:  # its failure is its result
        first = next(iter(str(error).strip().splitlines()), "")
        answer = None, f"{type(error).__name__}: {first}"
    connection.send(answer)
    connection.close()
