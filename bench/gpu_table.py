"""The table of `python -m bench gpu`, from whatever its steps have left; and of each of their files by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from . import environment, launch_rows
from .predict import measured_of
from .predict import table as predictions_table
from .records import Row, load, rows_of

PREDICTIONS = environment.ROOT / "bench" / "results" / "predictions.json"

Section = Callable[[Mapping[str, Any]], list[str]]


def table(result: Mapping[str, Any], folder: Path, predictions: Path = PREDICTIONS) -> str:
    """Markdown, of a command's summary and the files `gpu-STEP.json`. One that cannot be read costs its own section."""
    lines = ["# fastmeta on a GPU", "", *summary(result)]
    found: list[dict[str, Any]] = []
    for step in result["steps"]:
        path = folder / f"gpu-{step['step']}.json"
        if not path.exists():
            continue
        lines += [f"## {step['step']}", ""]
        try:
            one = load(path)
            lines += section_of(one)(one)
            found.append(one)
        except (ValueError, KeyError, TypeError) as error:
            lines += [f"{path.name} cannot be read: {type(error).__name__} {error}", ""]
    measured = measured_of(found)
    if measured and predictions.exists():
        lines += ["## measured beside predicted", "", *predictions_table(load(predictions)["predictions"], measured)]
    return "\n".join(lines)


def section_of(result: Mapping[str, Any]) -> Section:
    """What shows a file, by what it holds."""
    sections: dict[str, Section] = {
        "steps": summary, "rows": runs, "launch times": launch_times, "meta-steps": launches, "sweep": sweep,
        "ceilings": ceilings,
    }  # fmt: skip
    return next(section for name, section in sections.items() if name in result)


IN_REPORTS = ("steps", "launch times", "meta-steps", "sweep")
"""What marks a file that `report` has from here."""


def section(result: Mapping[str, Any]) -> str:
    """A file by itself, with where it was measured."""
    where = result["environment"]
    machine = ", ".join(str(where[name]) for name in ("gpu", "cpu") if name in where)
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    caption = f"{machine}, Python {where['python']}, {versions}; commit {where['commit']}, {where['date']}."
    return "\n".join([caption, "", *section_of(result)(result)])


def summary(result: Mapping[str, Any]) -> list[str]:
    """How the steps of a command ended, and their tests."""
    lines = ["```", result["nvidia-smi"], f"commit {result['environment']['commit']}", "```", ""]
    steps = [(step["step"], step["status"], f"{step['seconds']:.0f}", step["message"]) for step in result["steps"]]
    lines += _markdown(("step", "how it ended", "s", ""), steps)
    tests = result.get("tests", {}).items()
    failures = [(name, each["test"], each["message"]) for name, of in tests for each in of["failures"]]
    return lines + (_markdown(("step", "failed test", ""), failures) if failures else [])


def runs(result: Mapping[str, Any]) -> list[str]:
    """Meta-steps beside peers, in short; `report` shows them beside their floors, for which it needs torch."""
    head = ("workload", "precision", "peer", "ms (p20–p80)", "first call, s", "launches", "error", "allowed", "")
    lines = [
        (row.workload, row.precision, row.peer, _spread(row), _figure(row.first_call_s), str(row.launches or ""),
         _error(row.error), _error(row.bound), row.message if row.status == "ok" else f"{row.status}: {row.message}")
        for row in rows_of(result)
    ]  # fmt: skip
    return _markdown(head, lines)


def _spread(row: Row) -> str:
    if not row.samples_ms:
        return ""
    return f"{row.median_ms:.4g} ({row.percentile_ms(20):.4g}–{row.percentile_ms(80):.4g})"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def launch_times(result: Mapping[str, Any]) -> list[str]:
    """Every kernel of meta-steps."""
    head = ("meta-step", "kernel", "launches", "µs together", "µs each", "")
    return _markdown(head, launch_rows.cells(result["launch times"]))


def ceilings(result: Mapping[str, Any]) -> list[str]:
    """Rates."""
    rates = result["ceilings"]
    rows = [(name, f"{value:,.0f}", "GB/s" if name == "copy" else "GFLOP/s") for name, value in rates.items()]
    return _markdown(("ceiling", "", ""), rows)


def launches(result: Mapping[str, Any]) -> list[str]:
    """Bare launches, then meta-steps."""
    bare = [
        (row["kernel"], "graph" if row["graph"] else "one by one", str(row.get("us", row.get("message", ""))))
        for row in result["launches"]
    ]
    steps = [
        (row["workload"], row["peer"], *(_figure(row.get(key)) for key in ("host ms", "ms", "launches")),
         row["message"] if row["status"] != "ok" else "")
        for row in result["meta-steps"]
    ]  # fmt: skip
    head = ("workload", "path", "host, ms", "done, ms", "kernels", "")
    return [*_markdown(("kernel", "launched", "µs"), bare), *_markdown(head, steps)]


def sweep(result: Mapping[str, Any]) -> list[str]:
    """Stages and warps, the fastest first."""
    rows = sorted(result["sweep"], key=lambda row: (row["workload"], row["precision"], row.get("ms", float("inf"))))
    kernels = sorted({name for row in rows for name in row.get("us", ())})
    cells = [
        (row["workload"], row["precision"], *_pair(row["stages"], row["warps"]),
         _figure(row.get("ms")), *(_figure(row.get("us", {}).get(name)) for name in kernels),
         f"{row['error']:.1e}" if "error" in row else "", _why(row))
        for row in rows
    ]  # fmt: skip
    head = ("workload", "precision", "stages", "warps", "ms a step", *(f"{name}, µs" for name in kernels), "error", "")
    return _markdown(head, cells)


def _pair(stages: int | None, warps: int | None) -> tuple[str, str]:
    return str(stages or "own"), str(warps or "own")


def _why(row: Mapping[str, Any]) -> str:
    if "same code as" not in row:
        return row.get("message", "")
    stages, warps = _pair(*row["same code as"])
    return f"the code of {stages} stages and {warps} warps"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return [*("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines), ""]


def main() -> None:
    """Print the tables again of folders that tars were unpacked to."""
    import sys

    for folder in map(Path, sys.argv[1:]):
        for name in ("first", "second", "parts"):
            path = folder / f"gpu-{name}.json"
            if path.exists():
                print(table(json.loads(path.read_text(encoding="utf-8")), folder))


if __name__ == "__main__":
    main()
