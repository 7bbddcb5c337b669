"""Result files as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.run import FORMAT, Row

OURS = "fastmeta "
# Load (running processes) above which a table says that the machine was not quiet.
BUSY = 0.5
SPEED_HEAD = (
    "| peer | ms per meta-step (p20–p80) | tasks per second | speed-up over it | times the floor "
    "| first call, s | error |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def report(paths: Iterable[Path]) -> str:
    """One section for each file: where it was measured, then a table for each workload.

    Raises:
        ValueError: a file is no result of this benchmark.
    """
    return "\n".join(section(load(path)) for path in paths)


def load(path: Path) -> dict[str, Any]:
    """Read a result file."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); give files that `python -m bench run` wrote") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path} is no benchmark result of format {FORMAT}; measure again with this version")
    return result


def section(result: Mapping[str, Any]) -> str:
    """The tables of one result file."""
    lines = [caption(result), ""]
    rows = [Row(**{**row, "samples_ms": tuple(row["samples_ms"])}) for row in result.get("rows", ())]
    for (workload, algorithm), group in groupby(rows, key=lambda row: (row.workload, row.algorithm)):
        lines += speed_table(workload, algorithm, list(group), result["matrix_product_gflops"])
    if "memory" in result:
        lines += memory_table(result["memory"])
    return "\n".join(lines)


def caption(result: Mapping[str, Any]) -> str:
    """Machine, versions and commit in one line."""
    where = result["environment"]
    busy = f" Other processes were running (load {where['load before']})." if where["load before"] > BUSY else ""
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    return (
        f"{where['cpu']}, {result['threads']} threads, Python {where['python']}, {versions}; "
        f"commit {where['commit']}, {where['date']}.{busy}"
    )


def speed_table(workload: str, algorithm: str, rows: list[Row], gflops: float) -> list[str]:
    """One workload. "Speed-up over it": how many times faster the best of fastmeta's rows is."""
    sizes = ", ".join(f"{letter}={count}" for letter, count in rows[0].sizes.items())
    floor_ms = rows[0].flop / gflops / 1e6
    ours = min((row.median_ms for row in rows if row.samples_ms and row.peer.startswith(OURS)), default=None)
    lines = [
        f"**{workload}**, {algorithm} ({sizes}): {rows[0].flop / 1e9:.3g} GFLOP, "
        f"floor {floor_ms:.3g} ms at {gflops:.0f} GFLOP/s; error allowed {rows[0].bound:.1e}",
        "",
        *SPEED_HEAD,
    ]
    return [*lines, *(_speed_line(row, ours, floor_ms) for row in rows), ""]


def _speed_line(row: Row, ours: float | None, floor_ms: float) -> str:
    error = "" if row.error is None else f"{row.error:.1e}"
    if not row.samples_ms:
        return f"| {row.peer} | {row.status}: {row.message} | | | | | {error} |"
    median = row.median_ms
    spread = f"{row.percentile_ms(20):.3g}–{row.percentile_ms(80):.3g}"
    speed_up = "" if ours is None else f"{median / ours:.2f}×"
    return (
        f"| {row.peer} | {median:.3g} ({spread}) | {row.sizes['T'] / median * 1e3:.3g} | {speed_up} "
        f"| {median / floor_ms:.2f} | {row.first_call_s:.2g} | {error} |"
    )


def memory_table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Peaks over K, and how many times the first they are."""
    lines: list[str] = []
    for workload, of_workload in groupby(rows, key=lambda row: row["workload"]):
        lines += [f"**{workload}**, peak memory of a meta-step, MiB", ""]
        for index, (peer, of_peer) in enumerate(groupby(of_workload, key=lambda row: row["peer"])):
            cells = list(of_peer)
            if index == 0:
                lines.append("| peer | " + " | ".join(f"K={cell['steps']}" for cell in cells) + " | last / first |")
                lines.append("| --- |" + " ---: |" * (len(cells) + 1))
            peaks = [cell["peak_mib"] for cell in cells]
            shown = [
                cell["message"] if peak is None else f"{peak:.0f}" for cell, peak in zip(cells, peaks, strict=True)
            ]
            ratio = "" if None in (peaks[0], peaks[-1]) else f"{peaks[-1] / peaks[0]:.2f}"
            lines.append(f"| {peer} | " + " | ".join(shown) + f" | {ratio} |")
        lines.append("")
    return lines
