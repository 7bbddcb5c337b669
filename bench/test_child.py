"""Processes with a time limit, and what a scaling run makes of how they end."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from . import child, scaling
from .records import Point


def run(code: str, limit_s: float = 60, **options: Any) -> child.Ended:
    return child.run([sys.executable, "-c", code], limit_s=limit_s, **options)


def test_lines_arrive_and_the_end_is_told():
    lines: list[str] = []
    code = "import os, sys; print('a\\nb'); print(os.environ['X'], file=sys.stderr); sys.exit(3)"
    ended = run(code, each_line=lines.append, variables={"X": "why"})
    assert lines == ["a", "b"]
    assert (ended.status, ended.timed_out, ended.output, ended.reason()) == (3, False, "a\nb\n", "why")


def test_a_child_that_hangs_is_ended_with_its_own_children():
    code = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    start = time.monotonic()
    ended = run(code, limit_s=2)
    assert ended.timed_out
    assert time.monotonic() - start < 20
    assert "its time limit" in ended.reason()
    with pytest.raises(ProcessLookupError):  # a zombie belongs to nobody here: its parent is gone too
        _signal_until_gone(int(ended.output))


def _signal_until_gone(pid: int) -> None:
    import os

    for _ in range(50):
        os.kill(pid, 0)
        time.sleep(0.1)


def test_a_process_that_is_asked_to_end_in_time_writes_what_it_has(tmp_path: Path):
    tests = tmp_path / "test_it.py"
    tests.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(tests),
        "-v",
        "-p",
        "no:cacheprovider",
        f"--junit-xml={tmp_path / 'x'}",
    ]
    ended = child.run(command, limit_s=24, interrupt_s=12, log=tmp_path / "log")
    assert ended.timed_out
    assert ended.seconds < 23
    assert "its time limit" in ended.reason()
    assert 'name="test_a"' in (tmp_path / "x").read_text(encoding="utf-8")
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text(encoding="utf-8")


def test_a_process_that_does_not_listen_is_killed(tmp_path: Path):
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
    ended = run(code, limit_s=3, interrupt_s=1.0, log=tmp_path / "log")
    assert (ended.timed_out, ended.status) == (True, -9)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "x\n"


def test_a_process_ends_when_it_is_stopped():
    stop = iter([False, True])
    ended = run("import time; time.sleep(60)", stopped=lambda: next(stop))
    assert ended.timed_out
    assert ended.seconds < 20


def test_a_log_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child, "LOG_BYTES", 10)
    run("print('x' * 100)", log=tmp_path / "log")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "x" * 10 + "\n(what follows is left out)\n"


def test_a_crash_is_named():
    ended = run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert ended.reason() == "ended by SIGSEGV"


def test_a_flood_of_output_keeps_its_end():
    ended = run("print('x' * 100_000); print('end')")
    assert len(ended.output) == child.KEPT
    assert ended.output.endswith("end\n")


SETTINGS = {
    "workload": "sinusoid", "peer": "autograd loop", "axis": "tasks", "values": [1, 2], "algorithm": "maml",
    "device": "cpu", "precision": "float32", "memory_gib": 4.0, "step_s": 60.0, "threads": 1, "limit_s": 300,
}  # fmt: skip


def test_scaling_measures_in_a_process_of_its_own():
    first, second = scaling.measure(SETTINGS)
    assert [(p.value, p.status) for p in (first, second)] == [(1, "ok"), (2, "ok")]
    assert second.flop == 2 * first.flop
    assert first.ms is not None
    assert first.peak_mib is not None
    assert (first.error or 1) < 1e-5


def test_the_end_of_memory_is_a_result():
    settings = SETTINGS | {"peer": "torch.func vmap", "axis": "width", "values": [20, 2000, 4000], "memory_gib": 0.25}
    points = scaling.measure(settings)
    assert [p.status for p in points] == ["ok", "out of memory", "not measured"]
    assert points[1].ms is None


@pytest.mark.parametrize(
    "ended, status",
    [
        (child.Ended(1, False, 1.0, "", "x\nRuntimeError: can't allocate memory"), "out of memory"),
        (child.Ended(-6, False, 1.0, "", "terminate called after throwing 'std::bad_alloc'"), "out of memory"),
        (child.Ended(-9, True, 9.0, "", ""), "too slow"),
        (child.Ended(-11, False, 1.0, "", ""), "failed"),
    ],
)
def test_how_a_process_ends_is_a_point(ended: child.Ended, status: str, monkeypatch: pytest.MonkeyPatch):
    def run(command: list[str], *, each_line: Any, **_: Any) -> child.Ended:
        settings = json.loads(command[-1])
        point = Point(settings["workload"], "maml", settings["peer"], "tasks", 1, "ok", ms=1.0)
        each_line(json.dumps(vars(point)))
        return ended

    monkeypatch.setattr(child, "run", run)
    points = scaling.measure(SETTINGS | {"values": [1, 10, 100]})
    assert [p.status for p in points] == ["ok", status, "not measured"]
    assert [p.value for p in points] == [1, 10, 100]
