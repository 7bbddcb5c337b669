"""What an image takes, scaled to whole meta-steps; and how much memory is alive at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.kernels import counted as kernel_counts
from bench.kernels.compiled import WORKLOADS, FewShot, Workload
from bench.kernels.counted import GRADIENT, HVP, QUERY, Alive, b3, memory, peak_bytes, per_image, text

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1")


def two_blocks():
    """With parameters of no even size, a pool and none."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 3),
    )  # fmt: skip


def workload(**sizes):
    few_shot = FewShot(3, (1, 8, 8), **sizes)
    return Workload(two_blocks, 2, 0.1, few_shot.batch, F.cross_entropy, few_shot)


@pytest.fixture(autouse=True)
def _not_shared_out(monkeypatch):
    """Sums over pixels are not shared out here: of few pixels there are fewer shares than of many, and their terms are
    larger than such small networks."""
    from fastmeta.kernels import tiles

    monkeypatch.setattr(tiles, "PROGRAMS", 1)


def test_what_an_image_takes_foretells_a_whole_meta_step():
    """Tasks, steps, support and query samples all differ from what was counted."""
    from fastmeta.kernels.counts import counting

    whole = workload(tasks=2, support=2, query=3)
    found = per_image(whole)
    with counting() as counts:
        whole.session().meta_step(keep=True)
    assert found.launches == len(counts.launches)
    foretold = found.image_bytes() + found.row_bytes()
    assert counts.moved() <= foretold <= 1.06 * counts.moved()  # θ of the first step is one for all tasks
    assert sum(record.flop for record in counts.records) == pytest.approx(found.flop(), rel=0.3)  # tiles fill otherwise
    assert {GRADIENT, QUERY, HVP} < set(found.phases)
    assert found.images(GRADIENT) == found.images(HVP) == 2 * 2 * 2
    assert found.images(QUERY) == 2 * 3
    # what each phase cannot do without: the weights once, and the images
    row = 4 * sum(p.numel() for p in two_blocks().parameters())
    for name in (GRADIENT, QUERY, HVP):
        assert found.phases[name].row_bytes > row
        assert found.phases[name].image_bytes > 4 * 8 * 8
    assert found.phases[HVP].image_flop > 1.5 * found.phases[GRADIENT].image_flop


def test_bytes_of_images_are_told_from_those_of_parameters():
    """Twice the images are twice the former, and none of the latter."""
    one, two = (per_image(workload(tasks=1, support=2, query=2)._replace(counted=n)) for n in (1, 2))
    for name in (GRADIENT, QUERY, HVP):
        assert one.phases[name].row_bytes == pytest.approx(two.phases[name].row_bytes, rel=0.02)  # parts, up to 32
        assert one.phases[name].image_bytes == pytest.approx(two.phases[name].image_bytes, rel=0.1)
    assert two.moved - one.moved == pytest.approx(sum(share.image_bytes for share in one.phases.values()), rel=0.1)


def test_blocks_move_little_more_than_fused_layers_must():
    """Conv4 with a quarter of the channels, as nothing an image depends on their number but in proportion."""
    blocks = [
        [nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU(),
         nn.MaxPool2d(2)]
        for channels in (1, 16, 16, 16)
    ]  # fmt: skip
    model = nn.Sequential(*(layer for block in blocks for layer in block), nn.Flatten(), nn.Linear(16, 5))
    sizes = FewShot(5, (1, 28, 28), tasks=32, support=20, query=20)
    found = per_image(Workload(lambda: model, 5, 0.1, sizes.batch, F.cross_entropy, sizes, counted=2))
    for name in (GRADIENT, QUERY, HVP):
        assert found.b3[name] < found.phases[name].image_bytes < 1.3 * found.b3[name]


def test_b3_is_what_the_floors_of_the_workloads_were_made_of():
    """Microseconds at 4.3 TB/s of first-order and exact meta-steps, from a derivation of their own."""
    known = {"torchbench-maml": (667, 1372), "omniglot-20w1s": (596, 1439), "mini-5w1s": (316, 449)}
    for name, (first_order, exact) in known.items():
        work = WORKLOADS[name]
        sizes = work.sizes
        bytes_ = b3(work.at(sizes._replace(tasks=1)).session().backend._kernels.network, "float32")
        gradients = sizes.tasks * (work.steps * sizes.support + sizes.query)
        products = sizes.tasks * work.steps * sizes.support
        assert gradients * bytes_[GRADIENT] / 4.3e6 == pytest.approx(first_order, rel=0.01)
        assert (gradients * bytes_[GRADIENT] + products * bytes_[HVP]) / 4.3e6 == pytest.approx(exact, rel=0.01)


def test_the_report_of_a_workload_on_images(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "small", workload(tasks=2, support=3, query=3))
    row = kernel_counts.counts("small")
    assert row["gradient: moved / B3"] == pytest.approx(
        row["gradient: moved bytes an image"] / row["gradient: B3 bytes an image"], abs=1e-3
    )
    images = 2 * (2 * 3 + 3)
    assert (
        row["B3 bytes"] == images * row["gradient: B3 bytes an image"] + 12 * row["Hessian product: B3 bytes an image"]
    )
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
    row = memory("small")
    first = row["first-order MAML, bytes"]
    assert row["exact MAML, bytes"] > 2 * first
    assert first <= row["exact MAML, recomputing, bytes"] <= 1.3 * first  # its tangents, half of the tasks at a time
    assert row["exact MAML / first-order"] == round(row["exact MAML, bytes"] / first, 3)
    twice = peak_bytes(workload(tasks=8, support=8, query=1), "first-order MAML")
    assert 1.8 * first < twice < 2.05 * first
