"""The commands for GPUs, as far as a machine without one can tell: steps, limits, failures, what is kept, table."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from . import environment, gpu, gpu_files
from .checkout import checkout_on_path
from .compile_ahead import pairs_of
from .gpu import Settings
from .gpu_steps import EVERY, FIRST, GRAPH, LEFT, SECOND, TRITON, Call, Compiled, Module, Pytest, Step, Timed
from .gpu_table import table
from .options import parse
from .peers import PEERS
from .workloads import WORKLOADS


def step(code: str, limit_s: float = 60, **options: Any) -> Step:
    return Step(limit_s, lambda call: ("-c", code, call.device, str(call.out)), **options)


def settings(out: Path, limit_s: float = 300) -> Settings:
    return Settings("first", out, limit_s, device="cpu", quick=True, commit="abc")


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "gpu-first.json").read_text(encoding="utf-8"))


def names_in(out: Path) -> set[str]:
    with tarfile.open(out / "gpu-first.tar") as archive:
        return set(archive.getnames())


WRITES = """
import json, sys
rates = {"float32": 60000.0, "copy": 4000.0}
from bench import environment
where = {"gpu": "H200", "commit": environment.commit_of()}
json.dump({"format": 1, "environment": where, "ceilings": rates}, open(sys.argv[2], "w"))
print("on", sys.argv[1])
"""
JUNIT = """
import sys
case = '<testcase name="test_a[x]"><failure message="AssertionError: off by 2"/></testcase><testcase name="test_b"/>'
open(sys.argv[2], "w").write(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
raise SystemExit(1)
"""
NONE_RUNS = """
import sys
open(sys.argv[2], "w").write("<testsuite><testcase name='test_a'><skipped message='no GPU'/></testcase></testsuite>")
"""
FLUSHES = """
import sys, time
try:
    time.sleep(60)
except KeyboardInterrupt:
    open(sys.argv[2], "w").write('{"format": 1, "environment": {}, "ceilings": {"copy": 7.0}}')
"""
HANGS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
open(sys.argv[2], "w").write("{half")
print("begun", flush=True)
time.sleep(60)
"""


def test_every_step_that_fails_is_a_line_and_the_next_one_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    steps = {
        "beside": step("import time; time.sleep(1); print('compiled')", measures=False, beside=True),
        "tests": step(JUNIT, measures=False),
        "no tests": step(NONE_RUNS, measures=False),
        "crash": step("import os; os.abort()"),
        "hangs": step(HANGS, 4),
        "flushes": step(FLUSHES, 7),
        "broken": Step(60, lambda call: ("-c", None)),  # pyright: ignore[reportArgumentType]
        "absent": step("import sys; print('no GPU here', file=sys.stderr); sys.exit(77)"),
        "huge": step("import sys; open(sys.argv[2], 'w').write('x' * 17_000_000); print('y' * 3_000_000)"),
        "rates": step(WRITES),
    }
    assert gpu.run(steps, settings(tmp_path)) == 1
    result = summary_of(tmp_path)
    assert {each["step"]: each["status"] for each in result["steps"]} == {
        "beside": "ok", "tests": "failed", "no tests": "skipped", "crash": "failed", "hangs": "time limit",
        "flushes": "time limit", "broken": "failed", "absent": "skipped", "huge": "ok", "rates": "ok",
    }  # fmt: skip
    assert result["tests"]["tests"] == {
        "passed": 1, "failed": 1, "skipped": 0,
        "failures": [{"test": "test_a[x]", "message": "AssertionError: off by 2"}],
    }  # fmt: skip
    assert result["environment"] == {"gpu": "H200", "commit": "abc"}
    with tarfile.open(tmp_path / "gpu-first.tar") as archive:
        rates = archive.extractfile("gpu-rates.json")
        assert rates is not None
        assert json.load(rates)["ceilings"]["copy"] == 4000
    text = (tmp_path / "gpu-first.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert text in printed
    assert "hangs                time limit" in printed[printed.index(text) + len(text) :]
    for line in (
        "1 passed, 1 failed", "AssertionError: off by 2", "ended by SIGABRT", "no GPU here",
        "gpu-hangs.json cannot be read", "| copy | 7 | GB/s |", "| float32 | 60,000 | GFLOP/s |",
    ):  # fmt: skip
        assert line in text
    assert result["left out of the tar"] == ["gpu-huge.json"]
    assert {"gpu-first.json", "gpu-rates.json", "logs/beside.log", "logs/tests.out", "logs/huge.log"} <= names_in(
        tmp_path
    )
    assert (tmp_path / "gpu-first.tar").stat().st_size < 16_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu-first.json", "gpu-first.md", "gpu-first.tar"]


def test_after_every_step_all_that_is_known_lies_in_the_tar(tmp_path: Path):
    look = f"import tarfile; print(tarfile.open({str(tmp_path / 'gpu-first.tar')!r}).getnames())"
    assert gpu.run({"rates": step(WRITES), "look": step(look)}, settings(tmp_path)) == 0
    with tarfile.open(tmp_path / "gpu-first.tar") as archive:
        log = archive.extractfile("logs/look.log")
        assert log is not None
        seen = log.read().decode()
    assert "gpu-rates.json" in seen
    assert "logs/rates.log" in seen
    assert "look" not in seen


def test_a_command_that_is_ended_keeps_what_it_has(tmp_path: Path):
    ends = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    steps = {
        "beside": step("import time; time.sleep(60)", beside=True), "rates": step(WRITES), "ends": step(ends),
        "never": step(WRITES),
    }  # fmt: skip
    assert gpu.run(steps, settings(tmp_path)) == 1
    ended = {each["step"]: each["status"] for each in summary_of(tmp_path)["steps"]}
    assert ended == {"rates": "ok", "beside": "time limit"}
    assert "gpu-rates.json" in names_in(tmp_path)


def test_no_step_outlives_the_time_of_all(tmp_path: Path):
    steps = {"slow": step("import time; time.sleep(60)"), "late": step(WRITES)}
    assert gpu.run(steps, settings(tmp_path, 6)) == 1
    slow, late = summary_of(tmp_path)["steps"]
    assert (slow["status"], late["status"]) == ("time limit", "left out")


def test_a_tar_holds_the_first_files_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_files, "TAR_BYTES", 40_000)
    for name, size in (("a", 20_000), ("b", 20_000), ("c", 5_000)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert gpu_files.pack([tmp_path / name for name in "abc"], tmp_path, tmp_path / "t.tar") == ["b"]
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "t.tar").read_bytes())) as archive:
        assert archive.getnames() == ["a", "c"]
    assert (tmp_path / "t.tar").stat().st_size <= 40_000


# --- the schedule ---


def test_right_comes_before_fast():
    names = [name for name, each in FIRST.items() if not each.beside]
    assert names[:6] == [
        "tests-perceptrons", "tests-convolutions", "sinusoid", "omniglot", "launch-times", "tests-graphs"
    ]  # fmt: skip
    assert [name for name, each in {**FIRST, **SECOND}.items() if each.beside] == ["compile", "compile-rest"]


@pytest.mark.parametrize("command", ["first", "second"])
def test_the_steps_of_a_command_fit_into_six_minutes(command: str):
    steps = {"first": FIRST, "second": SECOND}[command]
    limit = parse(["gpu", "--out", "x"]).limit
    assert limit <= 350, "what starts and ends it takes a moment, too"
    assert sum(each.limit_s for name, each in steps.items() if not each.beside and name not in LEFT) <= limit
    assert [*steps][-len(LEFT) :] == [*LEFT] if command == "second" else True


def timed() -> dict[str, Timed]:
    return {name: each.command for name, each in EVERY.items() if isinstance(each.command, Timed)}


@pytest.mark.parametrize("name", timed())
def test_the_kernels_are_admitted_first_and_slow_compilers_stand_apart(name: str):
    command = timed()[name]
    assert command.peers[0] == GRAPH
    slow = [peer for peer in command.peers if peer.startswith("jax") or peer.endswith("compiled")]
    assert not slow or {*command.peers} == {GRAPH, *slow}
    for quick in (False, True):
        options = parse(command(Call("cuda", quick, Path("x.json"), 60))[2:])
        assert {*options.workload} <= WORKLOADS.keys()
        assert {*options.peer} <= PEERS.keys()
        assert (options.precision, options.quick) == (command.precision, quick)


@pytest.mark.parametrize("command", ["first", "second"])
def test_what_is_measured_is_compiled_ahead(command: str):
    steps = {"first": FIRST, "second": SECOND}[command]
    (ahead,) = (each.command for each in steps.values() if each.beside)
    assert isinstance(ahead, Compiled)
    measured = {
        (workload, each.command.precision) for each in steps.values() if isinstance(each.command, Timed)
        if {TRITON, GRAPH} & {*each.command.peers} for workload in each.command.workloads
    }  # fmt: skip
    assert measured <= {*ahead.kernels}
    words = ahead(Call("cuda", quick=False, out=Path("x.json"), limit_s=60))
    assert tuple(pairs_of(words[words.index("--kernels") + 1 :])) == ahead.kernels
    if command == "first":
        times = FIRST["launch-times"].command
        assert isinstance(times, Module)
        assert {(name, "tf32") for name in times.options[1:]} <= {*ahead.kernels}
    else:
        assert {"omniglot-5w1s", "mini-5w5s"} <= {workload for workload, _ in ahead.kernels}


def test_every_module_of_a_step_knows_its_options():
    for each in EVERY.values():
        if isinstance(each.command, Module):
            words = each.command(Call("cpu", quick=True, out=Path("x.json"), limit_s=60))
            done = subprocess.run(
                [sys.executable, *words, "--help"], cwd=environment.ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert all(word in done.stdout for word in words[2:] if word.startswith("--"))


@pytest.mark.parametrize("name", [name for name, each in EVERY.items() if isinstance(each.command, Pytest)])
def test_the_tests_of_a_step_exist(name: str):
    words = EVERY[name].command(Call("cuda", quick=False, out=Path("x.xml"), limit_s=60))
    words = [word for word in words if not word.startswith("--junit")]
    done = subprocess.run(
        [sys.executable, *words, "--collect-only"], cwd=environment.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = done.stdout
    kinds = {
        "tests-perceptrons": [f"[loop regression-sinusoid-{p}-own]" for p in ("float32", "tf32", "bfloat16")],
        "tests-convolutions": [f"[conv options-maml-{p}-own]" for p in ("float32", "tf32", "bfloat16")],
        "tests-graphs": ["test_a_graph_on_a_gpu_trains_as_the_ordinary_learner_does[maml-triton-plain]"],
        "tests-rest": [
            "[conv options-maml-tf32-3]", "[conv options-adam-float32-own]", "[loop random-0-float32-own]",
            "[conv shapes-stride 2, odd sides-float32-own]", "test_legal_labels_pass_on_a_gpu_without_waiting",
        ],
    }  # fmt: skip
    assert all(kind in found for kind in kinds[name])
    count = found.count("<Function")
    assert count == 3 if name in ("tests-perceptrons", "tests-convolutions") else 15 <= count <= 50
    assert "[maml-triton-compile]" not in found


def test_steps_import_this_checkout_and_carried_wheels(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "peer-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_peer.py", "NAME = 'peer'\n")
    code = "import carried_peer, fastmeta, fastmeta.kernels, bench; print(fastmeta.kernels.__file__, bench.__file__)"
    with checkout_on_path(wheels=tmp_path) as variables:
        command = [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}; {code}"]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    found = [Path(name) for name in done.stdout.split()]
    assert found[0].parent.name == "kernels"
    assert found[0].parent.parent.name == "fastmeta"
    assert all(path.parts[:-3] for path in found)
    assert not Path(variables["PYTHONPATH"].split(":")[0]).exists()  # gone with the run


def test_the_top_level_needs_neither_torch_nor_triton():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "import bench.__main__, bench.gpu, bench.gpu_table, bench.predict"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=environment.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the table ---


def test_the_table_shows_what_each_step_measured(tmp_path: Path):
    where = {"format": 1, "environment": {"commit": "abc"}}
    files = {
        "launches": {
            "launches": [{"kernel": "empty", "graph": True, "us": 1.25}],
            "meta-steps": [
                {"workload": "w", "peer": "p", "status": "ok", "message": "", "host ms": 0.5, "ms": 0.75,
                 "launches": 4},
                {"workload": "w", "peer": "q", "status": "failed", "message": "a|b"},
            ],
        },
        "sweep": {"sweep": [
            {"workload": "w", "precision": "tf32", "stages": 2, "warps": 8, "same code as": [None, 8]},
            {"workload": "w", "precision": "tf32", "stages": None, "warps": 8, "ms": 2.0, "us": {"adapt": 3.0}},
        ]},
        "launch-times": {"launch times": [
            {"workload": "many", "precision": "float32", "launches": 28, "kernels us": 28.0, "first to last us": 30.0,
             "kernels": [{"kernel": f"k{i}", "label": "", "programs": 1, "launches": 2, "us": 2.0, "least us": 1.0,
                          "most us": 1.0} for i in range(14)]},
            {"workload": "w", "precision": "tf32", "message": "RuntimeError: x"},
            {"workload": "w", "precision": "float32", "launches": 2, "kernels us": 30.0, "first to last us": 1041.5,
             "kernels": [{"kernel": "k", "label": "block 1", "programs": 25, "launches": 2, "us": 30.0,
                          "least us": 10.0, "most us": 20.0}]},
        ]},
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"gpu-{name}.json").write_text(json.dumps(where | content), encoding="utf-8")
    steps = [{"step": name, "status": "ok", "seconds": 1.0, "message": ""} for name in files]
    text = table({**where, "nvidia-smi": "H", "steps": steps}, tmp_path)
    assert "| empty | graph | 1.25 |" in text
    assert "| w | p | 0.5 | 0.75 | 4 |  |" in text
    assert "| w | q |  |  |  | a/b |" in text
    assert "| w | tf32 | own | 8 | 2 | 3 |  |  |" in text
    assert "| w | tf32 | 2 | 8 |  |  |  | the code of own stages and 8 warps |" in text
    assert "| w tf32 |  |  |  |  | RuntimeError: x |" in text
    assert "|  | k11 | 2 | 2.0 | 1.0–1.0 | 1 programs |\n|  | 2 others | 4 | 4.0 |  |  |" in text
    assert "| w float32 |  | 2 | 30.0 |  | 1,042 µs from first to last |" in text
    assert "|  | k block 1 | 2 | 30.0 | 10.0–20.0 | 25 programs |" in text


def test_measured_stands_beside_predicted(tmp_path: Path):
    row = {
        "workload": "omniglot-20w1s", "sizes": {"T": 32, "K": 5}, "algorithm": "maml", "status": "ok",
        "device": "cuda", "precision": "tf32",
    }  # fmt: skip
    rows = [
        {**row, "peer": "fastmeta triton", "samples_ms": [9.0]},
        {**row, "peer": "fastmeta triton graph", "samples_ms": [5.0, 4.25, 4.0]},
        {**row, "peer": "fastmeta eager graph", "samples_ms": [1.0]},
        {**row, "peer": "fastmeta triton", "samples_ms": [], "status": "wrong", "workload": "mini-5w1s"},
    ]
    ran = {"format": 1, "environment": {"commit": "abc"}, "ceilings": {}, "rows": rows}
    (tmp_path / "gpu-tf32.json").write_text(json.dumps(ran), encoding="utf-8")
    counts = {"launches": 184, "model FLOP": 1e9, "FLOP": 2e9, "bytes": 1e6, "bytes of images": 2.0, "fused bytes": 1.0}
    predicted = [
        {"workload": name, "sizes": {"T": 32, "K": 5}, "precision": "tf32", "low ms": 2.0, "high ms": 3.0, **counts}
        for name in ("omniglot-20w1s", "mini-5w1s")
    ]
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps({"format": 1, "environment": {}, "predictions": predicted}), encoding="utf-8")
    steps = [{"step": "tf32", "status": "ok", "seconds": 1.0, "message": ""}]
    result = {"nvidia-smi": "H", "environment": {"commit": "abc"}, "steps": steps}
    text = table(result, tmp_path, predictions=path)
    assert "| 2.00–3.00 | 4.25 (triton graph) |" in text
    assert "mini-5w1s (T=32, K=5) | tf32 | 184 | 1 | 2 | 1 | 2.00 | 2.00–3.00 |  |" in text
