"""Every kernel of the perceptron workloads compiled for GPUs that are not here, and what it does to memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("sm_80", "sm_90", "sm_100")
SINUSOIDS = ("sinusoid-k1", "sinusoid", "sinusoid-10k")


def fastmeta(*arguments, **environment):
    """(exit status, output) of the command; in a process of its own, as here kernels are interpreted."""
    code = "import sys; from fastmeta.cli import main; sys.exit(main(sys.argv[1:]))"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, cwd=ROOT, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def reports():
    """What the command gives for each target; the compiler takes a minute for one, so they run side by side."""
    with ThreadPoolExecutor(len(TARGETS)) as pool:
        return dict(
            zip(TARGETS, pool.map(lambda t: fastmeta("kernels", "--target", t, "--json"), TARGETS), strict=True)
        )


LOOP = {"adapt_kernel", "apply_kernel", "adjoint_kernel", "mean_kernel"}
LAYERS = {"linear_forward_kernel", "linear_backward_kernel", "linear_weight_kernel", "loss_kernel", "pull_kernel",
          "inputs_kernel", "losses_kernel", "finite_kernel", "mean_kernel"}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_no_kernel_spills_or_gets_worse(reports, target):
    version = ".".join(triton.__version__.split(".")[:2])
    path = ROOT / f"bench/results/kernels-triton-{version}.json"
    status, out, err = reports[target]
    rows = json.loads(out)
    launched = {}
    for row in rows:
        launched.setdefault((row["workload"], row["precision"]), set()).add(row["kernel"])
    precisions = ("float32", "tf32", "bfloat16")
    assert launched == {
        (w, p): LAYERS if w == "siren-64" else LOOP for w in (*SINUSOIDS, "siren-64") for p in precisions
    }
    assert status == 0, err
    if not path.exists():  # a Triton newer than the table: held to the rules alone
        return
    key = ("target", "workload", "precision", "kernel", "label")
    known = {tuple(row[k] for k in key): row for row in json.loads(path.read_text(encoding="utf-8"))}
    assert len({tuple(row[k] for k in key) for row in rows}) == len(rows)
    for row in rows:
        before = known[tuple(row[k] for k in key)]
        for figure in ("launches", "registers", "stack", "spilled", "shared", "narrow"):
            assert row[figure] <= before[figure], (row, figure, before[figure])
        assert row["matrix"].keys() == before["matrix"].keys()
        assert row["precisions"] == before["precisions"]


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
