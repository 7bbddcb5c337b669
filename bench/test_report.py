"""Tables, the README's summary and the figures, from made-up results."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from .__main__ import main
from .figures import draw, look
from .peers import PEERS
from .records import Point, Row, load, load_all, write
from .report import exponent, report, section, speed_table, summary, update_readme

ROOT = Path(__file__).resolve().parents[1]
CEILINGS = {"float32": 100.0, "copy": 10.0}


def row(peer: str, *samples_ms: float, **changes: Any) -> Row:
    values: dict[str, Any] = {"first_call_s": 0.5, "flop": 10**8, "bound": 1e-4, "samples_ms": samples_ms}
    return Row("w", {"T": 4, "N": 5, "M": 5, "K": 1}, "maml", peer, **{"status": "ok", **values, **changes})


def point(peer: str, value: int, ms: float | None, status: str = "ok", axis: str = "tasks") -> Point:
    peak = None if ms is None else 2.0 * value
    return Point("w", "maml", peer, axis, value, status, ms=ms, peak_mib=peak, flop=10**6 * value, bytes=100)


def result_of(**contents: Any) -> dict[str, Any]:
    environment = {"cpu": "C", "python": "3", "packages": {"torch": "2"}, "commit": "abc", "date": "d"}
    return {
        "format": 1,
        "environment": environment | {"busy before": 0.0},
        "threads": 2,
        "ceilings": CEILINGS,
        "memory limit GiB": 8,
        **contents,
    }


ROWS = [row("higher", 8.0, 6.0, 7.0), row("fastmeta eager", 4.0), row("fastmeta compiled", 2.0)]
POINTS = [
    *(point("autograd loop", value, float(value)) for value in (1, 10, 100)),
    point("fastmeta eager", 1, 1.0),
    point("fastmeta eager", 10, None, "out of memory"),
    point("fastmeta eager", 100, None, "not measured"),
    *(point("autograd loop", value, 3.0 * value, axis="steps") for value in (1, 5)),
]


def test_report_relates_every_peer_to_the_best_of_fastmeta():
    failed = row("torchopt", status="failed", message="RuntimeError: x", first_call_s=None)
    lines = [line.split(" | ") for line in speed_table("w", "maml", [*ROWS, failed], CEILINGS)]
    cells = {line[0].strip("| "): line for line in lines}
    assert cells["higher"][1:5] == ["7 (6.4–7.6)", "571", "3.50×", "7.00"]
    assert cells["fastmeta eager"][3] == "2.00×"
    assert cells["torchopt"][1] == "failed: RuntimeError: x"
    assert lines[0][0].endswith("fastmeta compiled is 3.50× as fast as the fastest peer, higher.")


def test_the_reference_is_no_way_to_run_fast():
    text = "\n".join(speed_table("w", "maml", [row("higher", 8.0), row("fastmeta reference", 1.0)], CEILINGS))
    assert "as fast as" not in text


def test_memory_and_launches_have_columns_where_they_are_known():
    plain = "\n".join(speed_table("w", "maml", ROWS, CEILINGS))
    assert "peak MiB" not in plain
    assert "launches" not in plain
    text = "\n".join(speed_table("w", "maml", [row("higher", 8.0, peak_mib=12.0, launches=4)], CEILINGS))
    assert "| 12 | 4 |" in text


def test_report_reads_what_is_written(tmp_path: Path):
    path = tmp_path / "results" / "r.json"
    parts = {"run": "sinusoid", "path": "eager", "step ms": 2.0, "engine ms": 1.5, "sampling ms": 0.3}
    parts |= {"optimiser ms": 0.1, "outside": 0.25, "episodes per second": 12345}
    waits = {"run": "sinusoid", "path": "triton", "message": "RuntimeError: no GPU"}
    contents = {"rows": [*map(asdict, ROWS)], "points": [*map(asdict, POINTS)], "end to end": [parts, waits]}
    write(result_of(**contents), path)
    text = section(load(path))
    assert "| higher | 7 (6.4–7.6) | 571 |" in text
    assert "| autograd loop | 1 / 2 | 10 / 20 | 100 / 200 | 1.00 |" in text
    assert "| fastmeta eager | 1 / 2 | out of memory | not measured |  |" in text
    assert "| sinusoid | eager | 2 | 1.5 | 0.3 | 0.1 | 25% | 12,345 |" in text
    assert "RuntimeError: no GPU" in text
    assert "Other processes" not in text
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no benchmark result"):
        load(path)


def test_exponent_is_the_slope_of_the_upper_values():
    points = [point("p", value, 5.0 if value == 1 else 2.0 * value**2) for value in (1, 10, 100, 1000)]
    assert exponent(points) == pytest.approx(2)


def test_summary_stands_between_the_marks_of_the_readme(tmp_path: Path):
    path, readme = tmp_path / "r.json", tmp_path / "README.md"
    write(result_of(rows=[*map(asdict, ROWS)]), path)
    readme.write_text("# Top\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nbottom\n", encoding="utf-8")
    update_readme(readme, [path])
    text = readme.read_text(encoding="utf-8")
    assert "| w (T=4, N=5, M=5, K=1) | maml | 2 (compiled) | 7 (higher) | 3.50× | 2.00 | 0.5 |" in text
    assert "old" not in text
    assert text.startswith("# Top\n")
    assert text.endswith("<!-- bench: end -->\nbottom\n")
    update_readme(readme, [path])
    assert readme.read_text(encoding="utf-8") == text
    readme.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="has no lines"):
        update_readme(readme, [path])


def test_what_was_measured_again_stands_as_in_the_last_file(tmp_path: Path):
    first, again = tmp_path / "a.json", tmp_path / "b.json"
    write(result_of(rows=[*map(asdict, ROWS), asdict(replace(row("higher", 5.0), algorithm="reptile"))]), first)
    write(result_of(rows=[asdict(ROWS[0]), asdict(row("fastmeta eager", 1.0))]), again)
    assert [(r["peer"], r["algorithm"]) for r in load_all([first, again])[0]["rows"]] == [("higher", "reptile")]
    lines = [line for line in summary([first, again]).splitlines() if line.startswith("| w ")]
    assert lines == ["| w (T=4, N=5, M=5, K=1) | maml | 1 (eager) | 7 (higher) | 7.00× | 1.00 | 0.5 |"]
    assert "fastmeta compiled" not in report([first, again])
    write(result_of(points=[*map(asdict, POINTS)]), first)
    write(result_of(points=[asdict(point("fastmeta eager", 10, 5.0))]), again)
    left = [p for p in load_all([first, again])[0]["points"] if p["axis"] == "tasks"]
    assert {p["peer"] for p in left} == {"autograd loop"}


def test_one_table_and_caption_for_a_machine(tmp_path: Path):
    rows = [row("higher", 4.0), row("fastmeta eager", 2.0)]
    first, second, other = (
        result_of(rows=[asdict(replace(r, workload=w)) for r in rows]) for w in ("z", "siren-64", "z")
    )
    second["environment"] |= {"commit": "def", "busy before": 1.0}
    other["environment"] |= {"cpu": "D"}
    paths = [tmp_path / name for name in ("1.json", "2.json", "3.json")]
    for path, result in zip(paths, (first, second, other), strict=True):
        write(result, path)
    text = summary(paths)
    assert text.count("| workload |") == 2
    assert "commit abc, d; commit def, d, other processes kept 1.0 processors busy." in text
    assert text.index("| siren-64 ") < text.index("| z ")  # workloads in their own order, others behind


def test_the_readme_holds_the_committed_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert summary(sorted((ROOT / "bench/results").glob("cpu-*.json"))) in text


def test_predictions_are_reported_beside_measurements():
    results = ROOT / "bench/results"
    assert "| omniglot-20w1s (T=32" in report([results / "cpu-maml.json", results / "predictions.json"])


def test_every_peer_has_a_look_of_its_own():
    assert len({look(peer) for peer in PEERS}) == len(PEERS)


def test_figures_show_every_run(tmp_path: Path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "r.json"
    write(result_of(rows=[*map(asdict, ROWS)], points=[*map(asdict, POINTS)]), path)
    written = draw([path], tmp_path / "figures")
    assert sorted(p.name for p in written) == ["scaling-cpu-w-maml.png", "speed-cpu-maml.png"]
    for picture in written:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 10_000


def test_the_command_line_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"format": 99}), encoding="utf-8")
    assert main(["report", str(path)]) == 2
    assert "no benchmark result" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "absent.json")]) == 2
    assert "absent.json" in capsys.readouterr().err


def test_on_a_gpu_rows_beside_other_peers_are_not_measured_again(tmp_path: Path):
    runs = [["fastmeta triton", "jax vmap"], ["fastmeta triton", "torch.func vmap"], ["jax vmap", "fastmeta triton"]]
    for place, peers in enumerate(runs):
        rows = [asdict(row(peer, 1.0 + place, device="cuda")) for peer in peers]
        write(result_of(rows=rows), tmp_path / f"{place}.json")
    first, second, third = load_all(tmp_path / f"{place}.json" for place in range(3))
    assert not first["rows"]
    assert [each["peer"] for each in second["rows"]] == runs[1]
    assert [each["peer"] for each in third["rows"]] == runs[2]
