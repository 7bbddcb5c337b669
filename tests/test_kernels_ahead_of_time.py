"""Every kernel of the perceptron workloads compiled for GPUs that are not here, and what it does to memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("sm_80", "sm_90", "sm_100")


def fastmeta(*arguments, **environment):
    """(exit status, output) of the command; in a process of its own, as here kernels are interpreted."""
    code = "import sys; from fastmeta.cli import main; sys.exit(main(sys.argv[1:]))"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, cwd=ROOT, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_no_kernel_spills_or_gets_worse(target):
    version = ".".join(triton.__version__.split(".")[:2])
    path = ROOT / f"bench/results/kernels-triton-{version}.json"
    status, out, err = fastmeta("kernels", "--target", target, "--json")
    rows = json.loads(out)
    assert {row["kernel"] for row in rows} == {"adapt_kernel", "apply_kernel", "adjoint_kernel", "mean_kernel"}
    assert {row["precision"] for row in rows} == {"float32", "tf32", "bfloat16"}
    if not path.exists():  # a Triton newer than the table: hold it to the rules alone
        assert status == 0, err
        return
    key = ("target", "workload", "precision", "kernel")
    known = {tuple(row[k] for k in key): row for row in json.loads(path.read_text(encoding="utf-8"))}
    for row in rows:
        before = known[tuple(row[k] for k in key)]
        for figure in ("registers", "stack", "shared", "narrow"):
            assert row[figure] <= before[figure], (row, figure, before[figure])
        assert row["matrix"].keys() == before["matrix"].keys()
        assert row["precisions"] == before["precisions"]
    spilled = {tuple(row[k] for k in key) for row in known.values() if row["stack"] and row["target"] == target}
    assert (status == 0) == (not spilled), err


def test_a_meta_step_takes_four_launches_and_moves_what_it_must():
    status, out, err = fastmeta("kernels", "--count", "sinusoid", "--json")
    assert status == 0, err
    counts = json.loads(out)
    assert counts["launches"] == ["adapt_kernel", "apply_kernel", "adjoint_kernel", "mean_kernel"]
    assert counts["compulsory bytes"] <= counts["distinct bytes"] <= 1.5 * counts["compulsory bytes"]
    # φ_1 … φ_5 of 25 tasks, 1,764 padded float32 values each
    assert counts["trajectory bytes"] == 5 * 25 * 1764 * 4


def test_interpreted_kernels_are_not_compiled():
    status, _, err = fastmeta("kernels", "--target", "sm_90", TRITON_INTERPRET="1")
    assert status == 2
    assert "TRITON_INTERPRET is set" in err
