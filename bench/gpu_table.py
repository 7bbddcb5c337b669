"""The table at the end of `python -m bench gpu`, from whatever its parts have left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .records import load

RUNS = ("images", "workloads", "tf32", "bfloat16")


def table(result: Mapping[str, Any], folder: Path) -> str:
    """Markdown. A file that is missing or cut short costs its own section only."""
    lines = ["# fastmeta on a GPU", "", "```", result["nvidia-smi"], "```", ""]
    lines += _markdown(("part", "how it ended", "s", ""), (_part(part) for part in result["parts"]))
    sections: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
        "ceilings": ceilings, **dict.fromkeys(RUNS, _run), "launches": launches, "sweep": sweep,
        "sweep-images": sweep,
    }  # fmt: skip
    for name, section in sections.items():
        path = folder / f"{name}.json"
        if path.exists():
            lines += [f"## {name}", ""]
            try:
                lines += section(load(path))
            except (ValueError, KeyError, TypeError) as error:
                lines += [f"{path.name} cannot be read: {type(error).__name__} {error}", ""]
    return "\n".join(lines)


def _part(part: Mapping[str, Any]) -> tuple[str, ...]:
    message = part["message"]
    if part["part"] == "tests":  # pytest's last line: how many passed
        message = next(reversed(part["output"].strip().splitlines()), message)
    return part["part"], part["status"], f"{part['seconds']:.0f}", message


def _run(result: Mapping[str, Any]) -> list[str]:
    from .report import section

    return [section(result)]


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
        (row["workload"], row["precision"], str(row["stages"] or "own"), str(row["warps"] or "own"),
         _figure(row.get("ms")), *(_figure(row.get("us", {}).get(name)) for name in kernels),
         f"{row['error']:.1e}" if "error" in row else "", row.get("message", ""))
        for row in rows
    ]  # fmt: skip
    head = ("workload", "precision", "stages", "warps", "ms a step", *(f"{name}, µs" for name in kernels), "error", "")
    return _markdown(head, cells)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return [*("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines), ""]


def main() -> None:
    """Print the table of a folder again."""
    import sys

    folder = Path(sys.argv[1])
    print(table(json.loads((folder / "gpu.json").read_text(encoding="utf-8")), folder))


if __name__ == "__main__":
    main()
