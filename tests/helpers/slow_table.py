"""Marks tests as slow by one table, and finds what in the table has no test any more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

Table = Mapping[str, tuple[str, ...]]
"""{`FILE::TEST` or `FILE::CLASS::TEST`: ids of parameters that stay in the fast set, where * stands for anything}."""


def mark(items: Iterable[pytest.Item], table: Table, *, root: Path, whole: Iterable[Path]) -> list[str]:
    """Adds the marker `slow` to tests that a row names and does not keep.

    Args:
        items: what was collected, before anything was deselected.
        table: see `Table`; files relative to `root`.
        root: the repository.
        whole: files and folders that were collected whole, not single tests of them.

    Returns:
        What is wrong with rows of files that were collected whole: no test, nothing to keep, or nothing that is slow.
    """
    tests: dict[str, dict[str, pytest.Item]] = {}
    for item in items:
        name, _, parameters = item.nodeid.partition("[")
        tests.setdefault(name, {})[parameters.removesuffix("]")] = item
    whole, problems = {path.resolve() for path in whole}, []
    files = {name.split("::")[0] for name in tests}
    for name, kept in table.items():
        found = tests.get(name, {})
        fast = {pattern: {p for p in found if _pattern(pattern).fullmatch(p)} for pattern in kept}
        slow = found.keys() - set().union(*fast.values())
        for parameters in slow:
            found[parameters].add_marker(pytest.mark.slow)
        file = root / name.split("::")[0]
        if not file.exists():
            problems.append(f"{name}: there is no such file")
        # a module may be skipped as a whole, where Triton is not installed
        elif name.split("::")[0] in files and whole & {file, *file.parents}:
            if not slow:
                problems.append(f"{name}: {'no test is slow' if found else 'there is no such test'}")
            problems += [f"{name}: no parameters match {pattern!r}" for pattern, ids in fast.items() if not ids]
    return problems


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


class OutOfDate(pytest.Item):
    """A test that fails: what a hook of a worker raises would be lost on its way to the report."""

    def __init__(self, *, problems: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.problems = problems

    def runtest(self) -> None:
        pytest.fail("\n".join([f"{self.name} is out of date:", *self.problems]), pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name
