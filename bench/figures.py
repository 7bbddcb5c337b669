"""Result files as pictures: bars of speed-up for each workload, curves over tasks, inner steps and width."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from .floors import floor_ms
from .peers import GRAPH
from .records import Point, Row, load_all, points_of, rows_of
from .report import OURS, TRUTH, best_of_ours, captions, rank
from .workloads import WORKLOADS

AXES = {"tasks": "tasks T of a meta-batch", "steps": "inner steps K", "width": "width of the hidden layers"}
# fastmeta in blues, peers in other colours (matplotlib's "tab20", no red beside green)
COLOURS = {
    "fastmeta eager": "#1f77b4",
    "fastmeta compiled": "#08306b",
    "fastmeta recompute": "#6baed6",
    "fastmeta triton": "#3f007d",
    "fastmeta reference": "#9ecae1",
    "torch.func vmap": "#ff7f0e",
    "torch.func loop": "#ffbb78",
    "torch.compile": "#e377c2",
    "jax vmap": "#8c564b",
    "jax map": "#c49c94",
    "autograd loop": "#7f7f7f",
    "learn2learn": "#2ca02c",
    "learn2learn idiom": "#98df8a",
    "higher": "#9467bd",
    "torchopt": "#bcbd22",
}
MARKERS = {"fastmeta compiled": "s", "fastmeta recompute": "v", "torch.func vmap": "^", "jax vmap": "D"}
PEER_COLOUR, OUR_COLOUR, BEST_COLOUR = "#b9b9b9", "#6baed6", "#08306b"


def draw(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Write the PNGs of result files; one for each algorithm's speeds, one for each scaling run.

    Raises:
        RuntimeError: without Matplotlib (`pip install "fastmeta[bench]"`).
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise RuntimeError('figures need Matplotlib: pip install "fastmeta[bench]"') from error
    folder.mkdir(parents=True, exist_ok=True)
    results = load_all(paths)
    written: list[Path] = []
    scaled: dict[tuple[str, str, str], list[tuple[Point, Mapping[str, Any]]]] = {}
    for result in results:
        kind = "gpu" if "gpu" in result["environment"] else "cpu"
        for point in points_of(result):
            scaled.setdefault((kind, point.workload, point.algorithm), []).append((point, result))
    for (kind, workload, algorithm), found in scaled.items():
        path = folder / f"scaling-{kind}-{workload}-{algorithm}.png"
        points, measured = zip(*found, strict=True)
        curves(points, measured, path)
        written.append(path)
    bars: dict[tuple[str, str], list[tuple[tuple[Row, ...], Mapping[str, Any]]]] = {}
    for result in results:
        for (_, algorithm), group in groupby(rows_of(result), key=lambda row: (row.workload, row.algorithm)):
            rows = tuple(group)
            bars.setdefault((rows[0].device, algorithm), []).append((rows, result))
    for (device, algorithm), found in bars.items():
        path = folder / f"speed-{device}-{algorithm}.png"
        groups, measured = zip(*sorted(found, key=lambda pair: rank(pair[0][0].workload, WORKLOADS)), strict=True)
        if speed_bars(groups, " ".join(captions(measured)), path):
            written.append(path)
    return written


def speed_bars(groups: Sequence[Sequence[Row]], where: str, path: Path) -> bool:
    """A panel for each workload, a bar for each peer: how many times longer than fastmeta's best it takes."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    groups = [group for group in groups if best_of_ours(group) is not None]
    if not groups:
        return False
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    most = max(sum(1 for row in group if row.samples_ms) for group in groups)
    figure = Figure(figsize=(5.2 * columns + 0.6, lines * (0.26 * most + 1.3) + 0.9), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes, group in zip(panels.flat, groups, strict=False):
        _bars(axes, group, most)
    for axes in panels.flat[len(groups) :]:
        axes.set_axis_off()
    first = groups[0][0]
    colours = {"fastmeta's fastest path": BEST_COLOUR, "its other paths": OUR_COLOUR, "peers": PEER_COLOUR}
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(f"{first.algorithm}, {first.device}: time of a meta-step in multiples of fastmeta's fastest path")
    _caption(figure, where)
    figure.savefig(path, dpi=110)
    return True


def _duration(ms: float) -> str:
    return f"{ms:.3g} ms" if ms < 999.5 else f"{ms / 1e3:.3g} s"


def _bars(axes: Any, group: Sequence[Row], most: int) -> None:
    best = best_of_ours(group)
    assert best is not None
    rows = sorted((row for row in group if row.samples_ms), key=lambda row: row.median_ms)
    ratios = [row.median_ms / best.median_ms for row in rows]
    colours = [
        BEST_COLOUR if row is best else OUR_COLOUR if row.peer.startswith(OURS) and row.peer != TRUTH else PEER_COLOUR
        for row in rows
    ]
    axes.barh(range(len(rows)), ratios, color=colours, left=0, height=0.75)
    axes.set_xscale("log")
    axes.set_xlim(0.7 * min(ratios), max(ratios) * 10)  # a peer may be faster than the best of ours
    axes.set_ylim(most - 0.5, -0.5)  # bars of one thickness in all panels
    axes.axvline(1, color=BEST_COLOUR, linewidth=0.8)
    ticks = [tick for tick in (1, 10, 100, 1000, 10_000) if tick <= max(10, *ratios)]
    axes.set_xticks(ticks, [f"{tick:,}×" for tick in ticks])
    axes.set_yticks(range(len(rows)), [row.peer for row in rows], fontsize=8)
    for place, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
        axes.text(ratio * 1.07, place, f"{ratio:.3g}×   {_duration(row.median_ms)}", va="center", fontsize=7.5)
    sizes = ", ".join(f"{letter}={count}" for letter, count in group[0].sizes.items())
    axes.set_title(f"{group[0].workload}  ({sizes})", fontsize=10)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def curves(points: Sequence[Point], results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A column for each axis: time above, with the floor, and memory below. A cross ends a curve that ran out."""
    from matplotlib.figure import Figure

    axes_of_run = [axis for axis in AXES if any(point.axis == axis for point in points)]
    figure = Figure(figsize=(4.6 * len(axes_of_run) + 1.2, 8.2), layout="constrained")
    panels = figure.subplots(2, len(axes_of_run), squeeze=False)
    for column, axis in enumerate(axes_of_run):
        mine = [point for point in points if point.axis == axis]
        for axes, quantity in zip(panels[:, column], ("ms", "peak_mib"), strict=True):
            _curves(axes, mine, quantity)
            axes.set_xlabel(AXES[axis])
        _floor(panels[0, column], mine, results[0]["ceilings"])
    panels[0, 0].set_ylabel("ms a meta-step")
    panels[1, 0].set_ylabel("peak memory of a meta-step, MiB")
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= {str(label): handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=max(2, 3 * len(axes_of_run) - 1),
        fontsize=9,
        frameon=False,
    )
    on_gpu = "gpu" in results[0]["environment"]
    limit = "" if on_gpu else f" ×: beyond {results[0]['memory limit GiB']:g} GiB."
    _caption(figure, f"{points[0].workload}, {points[0].algorithm}.{limit} " + " ".join(captions(results)))
    figure.savefig(path, dpi=110)


def look(peer: str) -> tuple[str, str]:
    """Colour and marker of a peer's curve: its own, another marker in a CUDA graph, and grey where it is unknown."""
    marker = "*" if peer.endswith(GRAPH) else MARKERS.get(peer, "o")
    return COLOURS.get(peer.removesuffix(GRAPH), PEER_COLOUR), marker


def _curves(axes: Any, points: Sequence[Point], quantity: str) -> None:
    from matplotlib.ticker import LogFormatter

    peers = list(dict.fromkeys(point.peer for point in points))
    for peer in peers:
        mine = [point for point in points if point.peer == peer]
        seen = [(p.value, getattr(p, quantity)) for p in mine if getattr(p, quantity)]
        if not seen:
            continue
        x, y = zip(*seen, strict=True)
        colour, marker = look(peer)
        axes.plot(x, y, label=peer, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
        ended = [p for p in mine if p.status == "out of memory"]
        if ended:
            axes.plot([x[-1], ended[0].value], [y[-1]] * 2, color=colour, linestyle=":", linewidth=1)
            axes.plot(ended[0].value, y[-1], marker="x", color=colour, markersize=9, markeredgewidth=2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = sorted({point.value for point in points})
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter())  # 60, where less than a decade is seen, for 6 × 10¹
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _floor(axes: Any, points: Sequence[Point], ceilings: dict[str, float]) -> None:
    floors = {p.value: floor_ms(p.flop, p.bytes, ceilings) for p in points if p.flop}
    if floors:
        x, y = zip(*sorted(floors.items()), strict=True)
        axes.plot(x, y, color="black", linestyle="--", linewidth=1.2, label="floor")


def _caption(figure: Any, text: str) -> None:
    width = int(figure.get_figwidth() * 14)
    figure.supxlabel("\n".join(textwrap.wrap(text, width)), fontsize=7.5, color="#444444")
