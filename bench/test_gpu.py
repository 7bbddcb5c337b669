"""The command for GPUs, as far as a machine without one can tell: parts, limits, failures, table."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from . import environment, gpu
from .checkout import checkout_on_path
from .gpu import GPU_TESTS, PARTS, SHORT_TESTS, Part
from .gpu_table import table
from .options import parse
from .peers import PEERS
from .sweep import Config, a_step, configs, launched_with
from .workloads import WORKLOADS


def part(code: str, limit_s: float = 60) -> Part:
    return Part(limit_s, lambda device, out: ("-c", code, device, str(out)))


WRITES = """
import json, sys
rates = {"float32": 60000.0, "copy": 4000.0}
json.dump({"format": 1, "environment": {}, "ceilings": rates}, open(sys.argv[2], "w"))
print("on", sys.argv[1])
"""


def test_every_part_that_fails_is_a_line_and_the_next_one_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parts = {
        "tests": part("print('3 failed, 2 passed in 1s'); raise SystemExit(1)"),
        "launches": part("import os; os.abort()"),
        "sweep": part("open(__import__('sys').argv[2], 'w').write('{half'); import time; time.sleep(60)", 2),
        "broken": Part(60, lambda device, out: ("-c", None)),  # pyright: ignore[reportArgumentType]
        "absent": part("import sys; print('no GPU here', file=sys.stderr); sys.exit(77)"),
        "ceilings": part(WRITES),
    }
    assert gpu.run([*parts], out=tmp_path, limit_s=300, device="cpu", parts=parts) == 1
    result = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    ends = {p["part"]: p["status"] for p in result["parts"]}
    assert ends == {
        "tests": "failed", "launches": "failed", "sweep": "time limit", "broken": "failed", "absent": "skipped",
        "ceilings": "ok",
    }  # fmt: skip
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "3 failed, 2 passed in 1s" in text
    assert "ended by SIGABRT" in text
    assert "no GPU here" in text
    assert "sweep.json cannot be read" in text
    assert "| float32 | 60,000 | GFLOP/s |" in text
    assert result["parts"][-1]["output"] == "on cpu\n"


def test_no_part_outlives_the_time_of_all(tmp_path: Path):
    parts = {"slow": part("import time; time.sleep(60)"), "late": part(WRITES)}
    assert gpu.run([*parts], out=tmp_path, limit_s=6, device="cpu", parts=parts) == 1
    slow, late = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"]
    assert (slow["status"], late["status"]) == ("time limit", "left out")


def test_the_time_of_all_is_within_nine_minutes():
    limit = parse(["gpu", "--out", "x"]).limit
    assert limit <= 530
    # the last three, of what is measured already other precisions and choices, take what the others leave
    *first, _, _, _ = PARTS.values()
    assert sum(p.limit_s for p in first) <= limit


def test_parts_import_this_checkout_and_carried_wheels(tmp_path: Path):
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


def test_the_short_tests_exist():
    command = [sys.executable, "-m", "pytest", *GPU_TESTS, "-m", "gpu", "-k", SHORT_TESTS]
    done = subprocess.run(
        [*command, "--collect-only", "-o", "addopts=", "-p", "no:cacheprovider"], cwd=environment.ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for precision in ("float32", "tf32", "bfloat16"):
        for stages in (1, 2, 3):
            assert f"[loop regression-sinusoid-{precision}-{stages}]" in done.stdout
            assert f"[conv options-maml-{precision}-{stages}]" in done.stdout
    assert "[conv options-adam-float32-1]" in done.stdout
    assert "[conv shapes-stride 2, odd sides-float32-1]" in done.stdout
    assert "test_a_graph_on_a_gpu" in done.stdout
    assert 20 <= done.stdout.count("<Function") <= 80


def test_a_sweep_changes_hot_kernels_only(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("triton")
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            self.recorded = False

        def record(self) -> None:
            self.recorded = True

    class Kernel:
        def __init__(self, name: str) -> None:
            self.__name__ = name

    seen: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr(launch, "run", lambda kernel, _, __, ___, options: seen.append((kernel.__name__, options)))
    mean = {"num_stages": 1, "num_warps": 8}
    own = {**mean, "PRECISION": "tf32"}
    with launched_with(Config("float32", 3, None)) as events:
        launch.launch(Kernel("adjoint_kernel"), (1,), **own)
        launch.launch(Kernel("mean_kernel"), (1,), **mean)
    launch.launch(Kernel("adjoint_kernel"), (1,), **own)
    stages = [(name, options["num_stages"], options["num_warps"]) for name, options in seen]
    assert stages == [("adjoint_kernel", 3, 8), ("mean_kernel", 1, 8), ("adjoint_kernel", 1, 8)]
    assert {name: [all(e.recorded for e in pair) for pair in pairs] for name, pairs in events.items()} == {
        "adjoint_kernel": [True], "mean_kernel": [True],
    }  # fmt: skip
    for workload, count in (("sinusoid", 12), ("mini-5w1s", 21)):
        assert configs(workload)[0] == Config("float32", None, None)
        assert len(configs(workload)) == len(set(configs(workload))) == count


def test_launches_of_a_kernel_are_added_up_step_by_step():
    assert a_step([1.0, 2.0, 10.0, 20.0, 3.0, 4.0], 3) == 7.0


@pytest.mark.parametrize("part", ["images", "tf32"])
def test_workloads_on_images_are_timed_beside_both_ways_of_torch_func(part: str):
    command = PARTS[part].command("cuda", Path("x.json"))
    assert {"omniglot-20w1s", "torchbench-maml", "mini-5w1s", "torch.func vmap", "torch.func loop"} <= set(command)
    options = parse(command[2:])
    assert {*options.workload} <= WORKLOADS.keys()
    assert {*options.peer} <= PEERS.keys()


def test_the_table_shows_what_each_part_measured(tmp_path: Path):
    (tmp_path / "launches.json").write_text(json.dumps({
        "format": 1,
        "launches": [{"kernel": "empty", "graph": True, "us": 1.25}, {"kernel": "x", "graph": False, "message": "E"}],
        "meta-steps": [
            {"workload": "w", "peer": "p", "status": "ok", "message": "", "host ms": 0.5, "ms": 0.75, "launches": 4},
            {"workload": "w", "peer": "q", "status": "failed", "message": "a|b"},
        ],
    }), encoding="utf-8")  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps({
        "format": 1,
        "sweep": [
            {"workload": "w", "precision": "tf32", "stages": 2, "warps": 8, "message": "meta-gradient off"},
            {"workload": "w", "precision": "tf32", "stages": None, "warps": None, "ms": 2.0, "us": {"adapt": 3.0}},
        ],
    }), encoding="utf-8")  # fmt: skip
    text = table({"nvidia-smi": "H", "parts": []}, tmp_path)
    assert "| empty | graph | 1.25 |" in text
    assert "| w | p | 0.5 | 0.75 | 4 |  |" in text
    assert "| w | q |  |  |  | a/b |" in text
    assert text.index("| w | tf32 | own | own | 2 | 3 |  |  |") < text.index("| w | tf32 | 2 | 8 |  |")
