"""Result files as Markdown: tables of everything, and the summary that stands in the README."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from . import gpu_table
from .before_after import table as before_after_table
from .floors import floor_ms
from .learned_optimizer import table as learned_optimizer_table
from .loop import table as loop_table
from .names import ALGORITHMS, OTHERS
from .predict import Measured, measured_of
from .predict import table as predictions_table
from .records import Point, Row, load_all, points_of, rows_of
from .workloads import WORKLOADS

OURS = "fastmeta "
TRUTH = "fastmeta reference"  # the plain loop that is the truth, not a way to run fast
# Processors kept busy by others above which a table says that the machine was not quiet.
BUSY = 0.25
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
LETTERS = {"tasks": "T", "steps": "K", "width": "width"}


def report(paths: Iterable[Path]) -> str:
    """One section for each file: where it was measured, then its tables; of what was measured again, the last.

    Raises:
        ValueError: a file is no result of this benchmark.
    """
    results = load_all(paths)
    measured = measured_of(results)
    return "\n".join(section(result, measured) for result in results)


def section(result: Mapping[str, Any], measured: Measured | None = None) -> str:
    """The tables of one result file; beside predictions what was measured."""
    if "predictions" in result:
        return "\n".join(predictions_table(result["predictions"], measured))
    if any(name in result for name in gpu_table.IN_REPORTS):
        return gpu_table.section(result)
    lines = [caption(result), ""]
    for (workload, algorithm), group in groupby(rows_of(result), key=lambda row: (row.workload, row.algorithm)):
        lines += speed_table(workload, algorithm, list(group), result["ceilings"])
    points = sorted(points_of(result), key=lambda p: (p.workload, p.algorithm, tuple(LETTERS).index(p.axis)))
    for (workload, algorithm, axis), group in groupby(points, key=lambda p: (p.workload, p.algorithm, p.axis)):
        lines += scaling_table(workload, algorithm, axis, list(group))
    if "end to end" in result:
        lines += end_to_end_table(result["end to end"])
    if "before after" in result:
        lines += before_after_table(result)
    if "loop" in result:
        lines += loop_table(result)
    if "learned optimizer" in result:
        lines += learned_optimizer_table(result)
    return "\n".join(lines)


def caption(result: Mapping[str, Any]) -> str:
    """Machine, versions and commit in one line."""
    return _caption(machine(result), [result])


def captions(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """A caption for each machine, with all occasions on which it measured."""
    return [_caption(where, group) for where, group in by_machine(results)]


def _caption(where: str, results: Iterable[Mapping[str, Any]]) -> str:
    return f"{where}; {'; '.join(dict.fromkeys(map(occasion, results)))}."


def by_machine(results: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The results of each machine."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(machine(result), []).append(result)
    return [*groups.items()]


def machine(result: Mapping[str, Any]) -> str:
    """Device, threads and versions."""
    where = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    device = f"{where['gpu']}, {where['cpu']}" if "gpu" in where else where["cpu"]
    return f"{device}, {result['threads']} threads, Python {where['python']}, {versions}"


def occasion(result: Mapping[str, Any]) -> str:
    """Commit, date, and who else was at work."""
    where = result["environment"]
    others = where["busy before"]
    busy = "" if others is None or others <= BUSY else f", other processes kept {others} processors busy"
    return f"commit {where['commit']}, {where['date']}{busy}"


# --- speed ---


def best_of_ours(rows: Iterable[Row]) -> Row | None:
    """fastmeta's fastest row."""
    ours = [row for row in rows if row.samples_ms and row.peer.startswith(OURS) and row.peer != TRUTH]
    return min(ours, key=lambda row: row.median_ms, default=None)


def best_of_peers(rows: Iterable[Row]) -> Row | None:
    """The fastest row that is not fastmeta's."""
    peers = [row for row in rows if row.samples_ms and not row.peer.startswith(OURS)]
    return min(peers, key=lambda row: row.median_ms, default=None)


def speed_table(workload: str, algorithm: str, rows: list[Row], ceilings: dict[str, float]) -> list[str]:
    """One workload. "Speed-up over it": how many times faster the best of fastmeta's rows is."""
    first = rows[0]
    sizes = ", ".join(f"{letter}={count}" for letter, count in first.sizes.items())
    floor = floor_ms(first.flop, first.bytes, ceilings, first.precision)
    ours, peer = best_of_ours(rows), best_of_peers(rows)
    lead = ""
    if ours is not None and peer is not None:
        lead = f" {ours.peer} is {_ratio(peer.median_ms / ours.median_ms)} as fast as the fastest peer, {peer.peer}."
    bound = "" if first.bound is None else f" Error allowed {first.bound:.1e}."
    counted = any(row.launches for row in rows)
    weighed = any(row.peak_mib is not None for row in rows)
    head = ["peer", "ms per meta-step (p20–p80)", "tasks per second", "speed-up over it", "times the floor"]
    head += ["first call, s", *(["peak MiB"] if weighed else []), *(["launches"] if counted else []), "error"]
    least = (
        f": {first.flop / 1e9:.3g} GFLOP, floor {_number(floor)} ms at {ceilings[first.precision]:.0f} GFLOP/s"
        if first.flop
        else ""  # nobody counted
    )
    lines = [
        f"**{workload}**, {algorithm}, {first.precision} ({sizes}){least}.{bound}{lead}",
        "",
        _line(head),
        "| --- |" + " ---: |" * (len(head) - 1),
    ]
    best = None if ours is None else ours.median_ms
    return [*lines, *(_line(_speed_cells(row, best, floor, weighed, counted, len(head))) for row in rows), ""]


def _speed_cells(row: Row, best: float | None, floor: float, weighed: bool, counted: bool, columns: int) -> list[str]:
    error = "" if row.error is None else f"{row.error:.1e}"
    if not row.samples_ms:
        return [row.peer, f"{row.status}: {row.message}", *[""] * (columns - 3), error]
    median = row.median_ms
    return [
        row.peer,
        f"{_number(median)} ({_number(row.percentile_ms(20))}–{_number(row.percentile_ms(80))})",
        _number(row.sizes["T"] / median * 1e3),
        "" if best is None else _ratio(median / best),
        f"{median / floor:.2f}" if floor else "",
        _number(row.first_call_s),
        *([_number(row.peak_mib)] if weighed else []),
        *([_number(row.launches)] if counted else []),
        error,
    ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ratio(value: float) -> str:
    return f"{value:.2f}×"


def _number(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


# --- scaling ---


def scaling_table(workload: str, algorithm: str, axis: str, points: list[Point]) -> list[str]:
    """Time and memory of every peer over the axis. Exponent p: time grows as (axis)^p over the upper values."""
    values = sorted({point.value for point in points})
    letter = LETTERS[axis]
    head = ["peer", *(f"{letter}={value}" for value in values), "exponent"]
    lines = [f"**{workload}**, {algorithm}, over {letter}: ms a meta-step / peak MiB", "", _line(head)]
    lines.append("| --- |" + " ---: |" * (len(head) - 1))
    for peer, group in groupby(sorted(points, key=lambda p: _order(points, p.peer)), key=lambda p: p.peer):
        mine = list(group)
        cells = {point.value: _cell(point) for point in mine}
        power = exponent(mine)
        shown = "" if math.isnan(power) else f"{power:.2f}"
        lines.append(_line([peer, *(cells.get(value, "") for value in values), shown]))
    return [*lines, ""]


def exponent(points: Iterable[Point]) -> float:
    """Slope of log time over log value, least squares on the last three points; NaN below two."""
    measured = sorted((p.value, p.ms) for p in points if p.ms is not None)[-3:]
    if len(measured) < 2:
        return math.nan
    value, ms = np.log(np.array(measured, dtype=float)).T
    return float(np.polyfit(value, ms, 1)[0])


def _order(points: Sequence[Point], peer: str) -> int:
    return next(i for i, point in enumerate(points) if point.peer == peer)


def _cell(point: Point) -> str:
    if point.ms is None and point.peak_mib is None:
        return point.status
    return " / ".join("–" if figure is None else _number(figure) for figure in (point.ms, point.peak_mib))


def end_to_end_table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Training steps and their parts."""
    head = ("run", "path", "ms a step", "engine", "sampling", "optimiser", "outside the engine", "episodes per second")
    lines = ["Training steps: `Trainer.run` over its iterations, and parts by themselves (ms)", "", _line(head)]
    lines.append("| --- | --- |" + " ---: |" * (len(head) - 2))
    for row in rows:
        cells = [row["run"], row["path"]]
        if "step ms" in row:
            cells += [_number(row[f"{part} ms"]) for part in ("step", "engine", "sampling", "optimiser")]
            cells += [f"{row['outside']:.0%}", f"{row['episodes per second']:,}"]
        else:
            cells += [row["message"], *[""] * (len(head) - 3)]
        lines.append(_line(cells))
    return [*lines, ""]


# --- README ---


SUMMARY = ("workload", "algorithm", "fastmeta, ms", "fastest peer, ms", "speed-up", "times the floor", "first call, s")


def summary(paths: Iterable[Path]) -> str:
    """A table for each machine; a line for each workload and algorithm: fastmeta's best path and the fastest peer."""
    results = [result for result in load_all(paths) if result.get("rows")]
    lines: list[str] = []
    for where, group in by_machine(results):
        lines += [
            "",
            _caption(where, group),
            "",
            _line(SUMMARY),
            "| --- | --- | --- | --- | ---: | ---: | ---: |",
            *_summary_lines(group),
        ]
    return "\n".join([*lines, ""]).strip("\n") + "\n"


def _summary_lines(results: Iterable[Mapping[str, Any]]) -> list[str]:
    found: list[tuple[int, int, str]] = []
    for result in results:
        for (workload, algorithm), group in groupby(rows_of(result), key=lambda row: (row.workload, row.algorithm)):
            line = _summary_line(list(group), result["ceilings"])
            if line is not None:
                found.append((rank(workload, WORKLOADS), rank(algorithm, (*ALGORITHMS, *OTHERS)), line))
    return [line for *_, line in sorted(found)]


def rank(name: str, names: Iterable[str]) -> int:
    """Where the name stands; one that is not there, after all."""
    order = [*names]
    return order.index(name) if name in order else len(order)


def _summary_line(rows: list[Row], ceilings: dict[str, float]) -> str | None:
    """Of one workload; None where fastmeta or every peer has no speed."""
    ours, peer = best_of_ours(rows), best_of_peers(rows)
    if ours is None or peer is None:
        return None
    sizes = ", ".join(f"{letter}={count}" for letter, count in ours.sizes.items())
    return _line([
        f"{ours.workload} ({sizes})", ours.algorithm, f"{_number(ours.median_ms)} ({ours.peer.removeprefix(OURS)})",
        f"{_number(peer.median_ms)} ({peer.peer})", _ratio(peer.median_ms / ours.median_ms),
        _times_floor(ours, ceilings), _number(ours.first_call_s),
    ])  # fmt: skip


def _times_floor(row: Row, ceilings: dict[str, float]) -> str:
    return f"{row.median_ms / floor_ms(row.flop, row.bytes, ceilings, row.precision):.2f}" if row.flop else ""


def update_readme(readme: Path, paths: Iterable[Path]) -> None:
    """Put the summary between the marks of the README.

    Raises:
        ValueError: the marks are not there.
    """
    text = readme.read_text(encoding="utf-8")
    if not (BEGIN in text and END in text.split(BEGIN, 1)[1]):
        raise ValueError(f"{readme} has no lines {BEGIN} and {END} to put the summary between")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    part = readme.with_name(readme.name + ".part")
    part.write_text(f"{head}{BEGIN}\n\n{summary(paths)}\n{END}{tail}", encoding="utf-8")
    os.replace(part, readme)
