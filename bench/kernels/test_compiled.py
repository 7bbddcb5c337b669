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
                "conv_image_kernel", "conv_weight_kernel", "block_weight_kernel", "pull_kernel", "finite_kernel",
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
        for figure in ("launches", "registers", "stack", "spilled", "shared", "narrow", "loop", "loop_narrow"):
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
    """No spill; warp-group products on sm_90, but for filters' gradients in tf32 or of fewer than a group's 64 rows."""
    rows = [row for row in known_rows().values() if row["workload"] in CONVOLUTIONAL]
    if not rows:
        pytest.skip("there are no rows of this Triton")
    cases = {(row["target"], row["workload"], row["precision"]) for row in rows}
    assert cases >= {(t, w, p) for t in ("sm_90",) for w in CONVOLUTIONAL for p in ("float32", "tf32", "bfloat16")}
    for row in rows:
        assert row["spilled"] == 0, row
        group = row["kernel"] in ("conv_forward_kernel", "conv_image_kernel") or (
            row["precision"] == "bfloat16" and "→64" in row["label"]
        )
        if row["kernel"].startswith("conv_") and row["target"] == "sm_90" and group:
            assert "HGMMA" in row["matrix"], row


WIDE = {"conv_forward_kernel", "conv_weight_kernel", "conv_image_kernel", "linear_forward_kernel",
        "linear_backward_kernel", "linear_weight_kernel", "head_kernel"}  # fmt: skip


def narrow_loops(rows):
    """Names of kernels whose main loops load anything but 16 bytes a thread, on sm_90.

    Left out are first layers, whose values lie 4 bytes apart; last layers of widths that 4 does not divide; and tf32
    products with a weight along its outputs, which warp groups want turned round in shared memory.
    """
    found = set()
    for row in rows:
        sizes = row["label"].split(" ")[0].replace("→", "×").split("×")
        turned = row["kernel"] in ("conv_image_kernel", "linear_backward_kernel") and row["precision"] == "tf32"
        odd = any(int(size) % 4 for size in sizes[-2:]) if row["kernel"] in WIDE else False
        if row["target"] == "sm_90" and row["kernel"] in WIDE and not (turned or odd) and row["loop_narrow"]:
            found.add(f"{row['kernel']} {row['label']} {row['precision']}")
    return found


def test_main_loops_load_16_bytes_at_a_time():
    rows = [row for row in known_rows().values() if row["workload"] in (*CONVOLUTIONAL, "siren-64")]
    if not rows:
        pytest.skip("there are no rows of this Triton")
    assert narrow_loops(rows) == set()
    loops = {(r["kernel"], r["precision"]): r for r in rows if r["label"] == "14×14×64→64" and r["target"] == "sm_90"}
    for precision, most in (("tf32", 160), ("bfloat16", 125)):
        row = loops["conv_forward_kernel", precision]
        assert row["loop"] <= most
        assert row["loop_wide"] > 0


@pytest.mark.parametrize(
    ("kernel", "label", "precision", "narrow"),
    [
        ("conv_forward_kernel", "14×14×64→64", "tf32", 24),
        ("conv_forward_kernel", "14×14×64→64 tangents", "bfloat16", 40),
        ("linear_forward_kernel", "256→256", "tf32", 16),
    ],
)
def test_what_was_compiled_with_remainders_and_hints_fails(kernel, label, precision, narrow):
    """Figures of Triton 3.6 from before, each of which had accesses of 16 bytes in its stores."""
    row = {"target": "sm_90", "kernel": kernel, "label": label, "precision": precision, "loop_narrow": narrow}
    assert narrow_loops([row]) == {f"{kernel} {label} {precision}"}
    assert narrow_loops([row | {"loop_narrow": 0}]) == set()


PLANTED = """
import torch, triton, triton.language as tl
from fastmeta.kernels.ahead_of_time import compiling
from fastmeta.kernels.launch import launch

@triton.jit(do_not_specialize=["at"])
def product_kernel(p_x, p_w, p_y, at, C: tl.constexpr, FOURS: tl.constexpr):
    o_r, o_k = tl.arange(0, 64), tl.arange(0, 32)
    p_w += at * 4 if FOURS else tl.multiple_of(at, 4)
    y = tl.zeros([64, 64], tl.float32)
    for k in range(0, C, 32):
        x = tl.load(p_x + o_r[:, None] * C + (k + o_k)[None, :])
        w = tl.load(p_w + o_r[:, None] * C + (k + o_k)[None, :])
        y = tl.dot(x, tl.trans(w), y)
    tl.store(p_y + o_r[:, None] * 64 + o_r[None, :], y)

with compiling("sm_90") as found:
    for fours in (False, True):
        x = torch.zeros(64, 512)
        launch(product_kernel, (1,), x, x, x, 0, C=512, FOURS=fours, num_warps=4, num_stages=2)
for row in found:
    print(row.loop > 0, row.loop_wide, row.loop_narrow)
"""


def test_a_loop_that_loads_4_bytes_at_a_time_is_seen(tmp_path):
    """A hint on an argument does nothing, and its stores of 16 bytes are none of the loop's loads."""
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env, cwd=ROOT, check=True)
    hint, fours = (line.split() for line in done.stdout.splitlines())
    assert (hint[0], fours[0]) == ("True", "True")
    assert int(hint[2]) > 0
    assert (int(fours[1]) > 0, int(fours[2])) == (True, 0)


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
