"""The rows of `launch_times.py` as cells of a table. No torch here: the table is made between two steps on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 12
"""Kernels of a meta-step that a table shows; the file has all."""


def cells(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each meta-step, and below it its kernels."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        name = f"{row['workload']} {row['precision']}"
        if "message" in row:
            lines.append((name, "", "", "", "", row["message"]))
            continue
        whole = f"{row['first to last us']:,.0f} µs from first to last"
        lines.append((name, "", str(row["launches"]), f"{row['kernels us']:,.1f}", "", whole))
        lines += [
            ("", f"{each['kernel']} {each['label']}".strip(), str(each["launches"]), f"{each['us']:,.1f}",
             f"{each['least us']:,.1f}–{each['most us']:,.1f}", f"{each['programs']} programs")
            for each in row["kernels"][:LONGEST]
        ]  # fmt: skip
        others = row["kernels"][LONGEST:]
        if others:
            count, us = sum(each["launches"] for each in others), sum(each["us"] for each in others)
            lines.append(("", f"{len(others)} others", str(count), f"{us:,.1f}", "", ""))
    return lines
