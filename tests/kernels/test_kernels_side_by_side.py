"""Jobs in processes of their own: what each gives, and that none costs another."""

from __future__ import annotations

import multiprocessing
import operator
import os
import time
from functools import partial

import pytest

pytest.importorskip("triton")

from fastmeta.kernels.side_by_side import side_by_side

SLEEP = partial(time.sleep, 60)


def test_a_job_that_raises_or_dies_costs_no_other():
    jobs = [partial(operator.add, 1, 2), partial(int, "x"), partial(os._exit, 3), partial(operator.add, 3, 4)]
    done = {each.place: each for each in side_by_side(jobs, limit_s=100, processes=2)}
    assert [done[place].result for place in range(4)] == [3, None, None, 7]
    assert done[1].failure.startswith("ValueError: invalid literal")
    assert done[2].failure == "its process ended with status 3"
    assert not done[0].failure


def test_a_job_that_hangs_is_given_up():
    assert len([*side_by_side([os.getpid], limit_s=100)]) == 1, "the server has started"
    start = time.monotonic()
    first, hung, late = side_by_side([os.getpid, SLEEP, os.getpid], limit_s=2, processes=1)
    assert first.result != os.getpid()
    assert (hung.place, hung.failure) == (1, "not done within 2 s")
    assert (late.place, late.failure) == (2, "not done within 2 s")
    assert time.monotonic() - start < 30
    assert not multiprocessing.active_children()


def test_a_caller_that_stops_leaves_no_process():
    ended = side_by_side([os.getpid, SLEEP], limit_s=100, processes=2)
    assert next(ended).place == 0
    ended.close()
    assert not multiprocessing.active_children()
