"""Every kernel of the perceptron workloads compiled for GPUs that are not here, and what it does to memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("sm_80", "sm_90", "sm_100")
SINUSOIDS = ("sinusoid-k1", "sinusoid", "sinusoid-10k")


def kernels(*arguments, **environment):
    """(exit status, output) of the command; in a process of its own, as here kernels are interpreted."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    done = subprocess.run(
        [sys.executable, "-m", "bench", "kernels", *arguments],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module", params=TARGETS)
def report(request):
    """What the command gives for one target, after a minute or two of the compiler's."""
    return kernels("--target", request.param, "--json")


LOOP = {"adapt_kernel", "apply_kernel", "adjoint_kernel", "mean_kernel"}
CONVOLUTIONAL = ("omniglot-20w1s", "mini-5w1s")
CONVOLUTIONS = {"inputs_kernel", "conv_forward_kernel", "block_forward_kernel", "block_tangent_kernel", "head_kernel",
                "block_backward_kernel", "conv_backward_kernel", "block_weight_kernel", "pull_kernel", "finite_kernel",
                "mean_kernel"}  # fmt: skip
LAYERS = {"linear_forward_kernel", "linear_backward_kernel", "linear_weight_kernel", "loss_kernel", "pull_kernel",
          "inputs_kernel", "losses_kernel", "finite_kernel", "mean_kernel"}  # fmt: skip


def known_rows():
    """The committed rows of this Triton, by what they differ in; none for a Triton that is newer than they are."""
    version = ".".join(triton.__version__.split(".")[:2])
    path = ROOT / f"bench/results/kernels-triton-{version}.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {key_of(row): row for row in rows}


def key_of(row):
    return tuple(row[k] for k in ("target", "workload", "precision", "kernel", "label", "programs"))


def launched(rows):
    found = {}
    for row in rows:
        found.setdefault((row["workload"], row["precision"]), set()).add(row["kernel"])
    return found


def assert_no_worse(rows):
    assert len({key_of(row) for row in rows}) == len(rows)
    known = known_rows()
    if not known:
        pytest.skip(f"there are no committed rows of Triton {triton.__version__} to compare with")
    for row in rows:
        before = known[key_of(row)]
        for figure in ("launches", "registers", "stack", "spilled", "shared", "narrow"):
            assert row[figure] <= before[figure], (row, figure, before[figure])
        assert row["matrix"].keys() == before["matrix"].keys()
        assert row["precisions"] == before["precisions"]


def test_no_kernel_spills_or_gets_worse(report):
    status, out, err = report
    rows = json.loads(out)
    precisions = ("float32", "tf32", "bfloat16")
    assert launched(rows) == {
        (w, p): LAYERS if w == "siren-64" else LOOP for w in (*SINUSOIDS, "siren-64") for p in precisions
    }
    assert status == 0, err
    assert_no_worse(rows)


def test_no_kernel_of_conv4_spills_or_gets_worse():
    """One target and precision, in a minute; the committed rows have them all."""
    status, out, err = kernels("--target", "sm_90", "--workload", "omniglot-20w1s", "--precision", "tf32", "--json")
    rows = json.loads(out)
    assert launched(rows) == {("omniglot-20w1s", "tf32"): CONVOLUTIONS}
    assert status == 0, err
    assert sum(row["launches"] for row in rows) == 184
    assert_no_worse(rows)


def test_committed_rows_of_convolutions_hold_what_they_must():
    """No spill on any target, warp-group products on sm_90, an access of 16 bytes in every convolution.

    Loads and stores are one number in a row: this does not say that operands are loaded 16 bytes at a time.
    """
    rows = [row for row in known_rows().values() if row["workload"] in CONVOLUTIONAL]
    if not rows:
        pytest.skip("there are no rows of this Triton")
    cases = {(row["target"], row["workload"], row["precision"]) for row in rows}
    assert cases >= {(t, w, p) for t in TARGETS for w in CONVOLUTIONAL for p in ("float32", "tf32", "bfloat16")}
    for row in rows:
        assert row["spilled"] == 0, row
        first = row["label"].split("→")[0].endswith(("×1", "×3"))  # of few channels, whose values are 4 bytes apart
        if row["kernel"] in ("conv_forward_kernel", "conv_backward_kernel"):
            assert row["target"] != "sm_90" or row["precision"] == "float32" or "HGMMA" in row["matrix"], row
            assert first or row["wide"] > 0, row


def test_a_meta_step_takes_four_launches_and_moves_what_it_must():
    status, out, err = kernels("--count", "sinusoid", "--json")
    assert status == 0, err
    counts = json.loads(out)
    assert counts["launches"] == ["adapt_kernel", "apply_kernel", "adjoint_kernel", "mean_kernel"]
    assert counts["compulsory bytes"] <= counts["distinct bytes"] <= 1.5 * counts["compulsory bytes"]
    # φ_1 … φ_5 of 25 tasks, 1,764 padded float32 values each
    assert counts["trajectory bytes"] == 5 * 25 * 1764 * 4


def test_interpreted_kernels_are_not_compiled():
    status, _, err = kernels("--target", "sm_90", TRITON_INTERPRET="1")
    assert status == 2
    assert "TRITON_INTERPRET is set" in err
