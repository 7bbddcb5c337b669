"""Holds every test of the fast set to a budget of time, so that the set stays fast."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from typing import Any, NamedTuple

import pytest

CPU_SECONDS = 5.0
"""What a test may take of processors, its own threads and the processes that it waited for together."""
WALL_SECONDS = 20.0
"""What it may take by the clock: it may share its processors with others, but not sleep or wait for long."""


class Cost(NamedTuple):
    """Seconds of processors, and by the clock."""

    cpu: float
    wall: float

    def __add__(self, other: Cost) -> Cost:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Cost(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.cpu - other.cpu, self.wall - other.wall)


def now() -> Cost:
    times = os.times()
    return Cost(times.user + times.system + times.children_user + times.children_system, time.perf_counter())


def excess(cost: Cost, cpu: float = CPU_SECONDS, wall: float = WALL_SECONDS) -> str | None:
    """What a test of the fast set did wrong that took so long; None where it did nothing wrong."""
    if cost.cpu <= cpu and cost.wall <= wall:
        return None
    return (
        f"took {cost.cpu:.1f} s of processors and {cost.wall:.1f} s by the clock; a test of the fast set has {cpu:g} "
        f"and {wall:g}: make it smaller, share what it builds in a fixture of its module, or list it as slow in "
        "tests/conftest.py"
    )


class Budget:
    """A pytest plugin: measures the call of every test with its own fixtures, fails those beyond the budget.

    What a fixture of a wider scope takes is nobody's: whichever test comes first would pay for all. Where `enforced` is
    false nothing fails. `slowest` tests are listed at the end, with the sum of all.
    """

    def __init__(
        self, *, enforced: bool, slowest: int = 0, cpu: float = CPU_SECONDS, wall: float = WALL_SECONDS
    ) -> None:
        self.enforced, self.slowest, self.cpu, self.wall = enforced, slowest, cpu, wall
        self._shared: Cost = Cost(0.0, 0.0)  # of fixtures that several tests share
        self._depth = 0
        self._setup: Cost = Cost(0.0, 0.0)
        self._found: list[tuple[float, float, str]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        start = now()
        self._depth += 1
        try:
            return (yield)
        finally:
            self._depth -= 1
            if not self._depth:
                self._shared += now() - start

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, Any, Any]:
        self._shared, start = Cost(0.0, 0.0), now()
        try:
            return (yield)
        finally:
            self._setup = now() - start - self._shared

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._shared, start = Cost(0.0, 0.0), now()
        result = yield
        cost = self._setup + (now() - start - self._shared)  # a test may ask for shared fixtures when it runs, too
        item.user_properties.append(("cost", tuple(cost)))
        message = excess(cost, self.cpu, self.wall)
        if self.enforced and message is not None and item.get_closest_marker("slow") is None:
            pytest.fail(message, pytrace=False)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self._found += [(*cost, report.nodeid) for name, cost in report.user_properties if name == "cost"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.slowest or not self._found:
            return
        found = sorted(self._found, reverse=True)
        total = sum(cpu for cpu, _, _ in found)
        terminalreporter.write_sep("=", f"{total:.0f} s of processors in {len(found)} tests, without shared fixtures")
        for cpu, wall, name in found[: self.slowest]:
            terminalreporter.write_line(f"{cpu:8.2f} {wall:8.2f} {name}")
