"""The ends of a meta-step: means over any number of tasks, and what is not finite, by one program or by many."""

from __future__ import annotations

import pytest
import torch
from kernel_runs import DEVICE, needs_kernels

pytest.importorskip("triton")
pytestmark = needs_kernels


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("tasks", [1, 3, 25, 33, 128, 129, 300])
@pytest.mark.parametrize("bad", ["none", "some", "all"])
def test_means_are_of_the_finite_tasks(tasks, bad):
    from fastmeta.kernels import mlp, tiles

    lam, losses = torch.randn(tasks, 132, device=DEVICE), torch.randn(tasks, device=DEVICE)
    finite = torch.ones(tasks, dtype=torch.uint8, device=DEVICE)
    if bad != "none":
        finite[slice(0, tasks, 1 if bad == "all" else 2)] = 0
    lam[finite == 0] = 0.0
    losses[finite == 0] = torch.nan
    gradient, loss = mlp.mean_over_tasks(lam, losses, finite)
    again = mlp.mean_over_tasks(lam, losses, finite)
    assert (gradient.shape, loss.shape) == ((132,), ())
    assert torch.equal(again[0], gradient)
    kept = finite.bool()
    count = max(1, int(kept.sum()))
    torch.testing.assert_close(gradient.double(), lam[kept].double().sum(0) / count, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.double(), losses[kept].double().sum() / count, rtol=1e-5, atol=1e-6)
    assert tiles.mean_tiles(tasks)[0] == -(-tasks // 128)


def test_hardly_any_number_of_tasks_asks_for_a_kernel_of_its_own():
    from fastmeta.kernels.tiles import mean_tiles

    assert len({str(mean_tiles(tasks)[1]) for tasks in range(1, 20_000)}) <= 9


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("block", [64, 2048], ids=["many programs", "one program"])
def test_what_is_not_finite_is_found_wherever_it_stands(monkeypatch, block):
    from fastmeta.kernels import tiles
    from fastmeta.kernels.launch import launch
    from fastmeta.kernels.mean_over_tasks import finite_kernel, inputs_kernel

    monkeypatch.setattr(tiles, "ROW_BLOCK", block)
    size, places = 500, [0, 63, 64, 250, 499]
    x = torch.randn(len(places) + 2, size, device=DEVICE)
    for task, place in enumerate(places):
        x[task, place] = torch.inf if task % 2 else torch.nan
    tasks, want = x.shape[0], x.isfinite().all(1)
    programs, options = tiles.row_shares(size, tasks)
    assert (programs == tasks) == (block == 2048)
    bad, finite = x.new_empty(tasks), torch.empty(tasks, dtype=torch.uint8, device=DEVICE)
    arrived = torch.zeros(tasks, dtype=torch.int32, device=DEVICE)
    parts = bad.new_empty(tasks, options["SHARES"])
    launch(inputs_kernel, (programs,), x, bad, parts, arrived, **options)
    assert torch.equal(bad == 0.0, want)
    for _ in range(2):  # what counts arrivals is zero again
        before, lam = torch.zeros(tasks, device=DEVICE), x.clone()
        before[-1] = torch.nan
        launch(finite_kernel, (programs,), lam, before, finite, parts, arrived, **options)
        kept = want & (before == 0.0)
        assert torch.equal(finite.bool(), kept)
        assert torch.equal(lam, torch.where(kept[:, None], x, 0.0))
