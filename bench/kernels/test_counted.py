"""What an image takes, scaled to whole meta-steps; and how much memory is alive at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from bench.floors import fused_bytes
from bench.kernels import counted
from bench.kernels.counted import GRADIENT, PRODUCT, QUERY, per_image, text
from bench.kernels.peak_memory import Alive, peak_bytes, peak_memory
from bench.kernels.sessions import session
from bench.workloads import WORKLOADS, Workload

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1")


def two_blocks():
    """With parameters of no even size, a pool and none."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 3),
    )  # fmt: skip


@dataclass(frozen=True)
class TwoBlocks(Workload):
    """Of images of 8 × 8."""

    def model(self, seed=0):
        return two_blocks()


def workload(*, tasks, support, query):
    return TwoBlocks(
        "small", "two blocks", (1, 8, 8), "cross_entropy", tasks=tasks, support=support, query=query, steps=2, lr=0.1,
        width=8, outputs=3,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _not_shared_out(monkeypatch):
    """Sums over pixels are not shared out here: of few pixels there are fewer shares than of many, and their terms are
    larger than such small networks."""
    from fastmeta.kernels import tiles  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    monkeypatch.setattr(tiles, "PROGRAMS", 1)


def test_what_an_image_takes_foretells_a_whole_meta_step():
    """Tasks, steps, support and query samples all differ from what was counted."""
    from fastmeta.kernels.counts import counting  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    whole = workload(tasks=2, support=2, query=3)
    found = per_image(whole, images=1)
    with counting() as counts:
        session(whole).meta_step(keep=True)
    assert found.launches == len(counts.launches)
    foretold = found.image_bytes() + found.row_bytes()
    assert counts.moved() <= foretold <= 1.06 * counts.moved()  # θ of the first step is one for all tasks
    assert sum(record.flop for record in counts.records) == pytest.approx(found.flop(), rel=0.3)  # tiles fill otherwise
    assert {GRADIENT, QUERY, PRODUCT} < set(found.phases)
    assert found.images(GRADIENT) == found.images(PRODUCT) == 2 * 2 * 2
    assert found.images(QUERY) == 2 * 3
    # what each phase cannot do without: the weights once, and the images
    row = 4 * sum(p.numel() for p in two_blocks().parameters())
    for name in (GRADIENT, QUERY, PRODUCT):
        assert found.phases[name].row_bytes > row
        assert found.phases[name].image_bytes > 4 * 8 * 8
    assert found.phases[PRODUCT].image_flop > 1.5 * found.phases[GRADIENT].image_flop


def test_bytes_of_images_are_distinguished_from_those_of_parameters():
    """Twice the images are twice the former, and none of the latter."""
    one, two = (per_image(workload(tasks=1, support=2, query=2), images=n) for n in (1, 2))
    for name in (GRADIENT, QUERY, PRODUCT):
        assert one.phases[name].row_bytes == pytest.approx(two.phases[name].row_bytes, rel=0.02)  # parts, up to 32
        assert one.phases[name].image_bytes == pytest.approx(two.phases[name].image_bytes, rel=0.1)
    assert two.moved - one.moved == pytest.approx(sum(share.image_bytes for share in one.phases.values()), rel=0.1)


def test_blocks_move_little_more_than_fused_layers_must():
    """Conv4 with a quarter of the channels, as nothing an image depends on their number but in proportion.

    A filter's gradient reads again what the image's has read: in one launch they moved 1.23 times the least, but could
    not be pipelined (kernels/README.md).
    """
    narrow = replace(WORKLOADS["omniglot-5w1s"], width=16, tasks=32, support=20, query=20, steps=5)
    found = per_image(narrow, images=2)
    least = {GRADIENT: found.fused.gradient, QUERY: found.fused.gradient, PRODUCT: found.fused.hessian_product}
    for name, fused in least.items():
        assert fused < found.phases[name].image_bytes < 1.4 * fused


def test_fused_bytes_are_what_the_floors_of_the_workloads_were_made_of():
    """Microseconds at 4.3 TB/s of first-order and exact meta-steps, from a derivation of their own."""
    known = {"torchbench-maml": (667, 1372), "omniglot-20w1s": (596, 1439), "mini-5w1s": (316, 449)}
    for name, (first_order, exact) in known.items():
        full, fused = WORKLOADS[name], fused_bytes(WORKLOADS[name])
        gradients = full.tasks * (full.steps * full.support + full.query)
        products = full.tasks * full.steps * full.support
        assert gradients * fused.gradient / 4.3e6 == pytest.approx(first_order, rel=0.01)
        microseconds = (gradients * fused.gradient + products * fused.hessian_product) / 4.3e6
        assert microseconds == pytest.approx(exact, rel=0.01)
    float32, bfloat16 = (fused_bytes(WORKLOADS["mini-5w1s"], p) for p in ("tf32", "bfloat16"))
    assert float32 == (2 * bfloat16.gradient, 2 * bfloat16.hessian_product)


def test_the_report_of_a_workload_on_images(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "small", workload(tasks=2, support=3, query=3))
    row = counted.counts("small")
    fused, fused_product = row["gradient: fused bytes an image"], row["Hessian product: fused bytes an image"]
    assert row["gradient: moved / fused"] == pytest.approx(row["gradient: moved bytes an image"] / fused, abs=1e-3)
    images = 2 * (2 * 3 + 3)
    assert row["fused bytes"] == images * fused + 12 * fused_product
    assert row["moved bytes of images"] > row["compulsory bytes"]
    lines = text(row).splitlines()
    assert "sizes: T=2, N=3, M=3, K=2" in lines
    assert any(line.startswith("  phase adapt, launch conv_forward_kernel 8×8×1→8") for line in lines)


def test_alive_are_tensors_made_inside_once_each_until_nobody_holds_them():
    before = torch.zeros(1000)
    with Alive() as alive:
        a = torch.empty(100)
        view = a[10:]
        before.add_(1)
        b = before.view(10, 100)
        del a
        assert (alive.now, alive.most) == (400, 400)
        del view
        assert alive.now == 0
        b = torch.cat([torch.zeros(100), torch.zeros(100)])
    assert (alive.now, alive.most) == (800, 1600)
    del b
    assert alive.now == 0


def test_peak_memory_of_exact_and_first_order_maml(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "small", workload(tasks=4, support=8, query=1))
    row = peak_memory("small")
    first = row["first-order MAML, bytes"]
    assert row["exact MAML, bytes"] > 2 * first
    assert first <= row["exact MAML, recomputing, bytes"] <= 1.3 * first  # its tangents, half of the tasks at a time
    assert row["exact MAML / first-order"] == round(row["exact MAML, bytes"] / first, 3)
    twice = peak_bytes(workload(tasks=8, support=8, query=1), "first-order MAML")
    assert 1.8 * first < twice < 2.05 * first


def test_counting_says_where_kernels_are_compiled(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    small = workload(tasks=1, support=1, query=1)
    for count in (lambda: counted.counts("sinusoid"), lambda: peak_memory("sinusoid"), lambda: per_image(small)):
        with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1 before"):
            count()


def test_only_images_are_counted_one_by_one():
    with pytest.raises(ValueError, match="sinusoid is no workload on images"):
        per_image(WORKLOADS["sinusoid"])


def test_launches_and_shares_are_as_before_behind_their_blocks():
    from fastmeta.kernels import launch, tiles  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    run, programs, seen = launch.run, tiles.PROGRAMS, []

    def inside():
        with launch.through(lambda *launched: seen.append(launched)) as before, tiles.shared_among(64):
            assert before is run
            assert tiles.weight_shares(1000, 10, 8) == (8, 13)
            launch.launch("kernel", (2,), 3, label="a", num_warps=4)
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert seen == [("kernel", "a", (2,), (3,), {"num_warps": 4, "enable_fp_fusion": True})]
    assert (launch.run, tiles.PROGRAMS) == (run, programs)
