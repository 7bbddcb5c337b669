"""Beside the plain loop: what is the same, what is missing, and what a ratio is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastmeta import reference

from . import loop
from .loop_models import CASES, Case
from .report import section


def run(out: Path | None = None, **options):
    quick = {"models": ["opaque ops"], "algorithms": ["maml"], "steps": [1]}
    return loop.run(rounds=2, budget_s=0.1, device="cpu", threads=1, out=out, **{**quick, **options})


def test_every_algorithm_is_timed_beside_the_loop(tmp_path: Path):
    result = run(tmp_path / "x.json", algorithms=["maml", "fomaml"])
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == result
    assert [row["status"] for row in result["loop"]] == ["ok", "ok"]
    for row in result["loop"]:
        assert row["ratio min"] <= row["ratio max"]
        assert 0 <= row["difference"] < 1e-5
    assert "| opaque ops | fomaml | 1 |" in section(result)


def test_the_loop_is_exact_where_it_says_so():
    """First-order and exact meta-gradients of one batch differ, and the exact one is the reference's."""
    case = CASES["opaque ops"]()
    exact, first = (loop.plain_loop(case, 1, exact=flag)() for flag in (True, False))
    assert float((exact - first).norm() / exact.norm()) > 1e-3
    sx, sy, qx, qy = case.batch
    phi = reference.adapt(
        case.model, inner_loss=case.loss, inner_optimizer=loop.fastmeta.SGD(lr=case.lr), steps=1, support_x=sx,
        support_y=sy,
    )  # fmt: skip
    losses = reference.task_losses(case.loss, reference.apply(case.model, phi, qx), qy)
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(losses.mean(), list(case.model.parameters()))])
    torch.testing.assert_close(exact, truth)


def test_a_package_that_is_missing_is_a_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (row,) = run(models=["BERT"])["loop"]
    assert row["status"] == "skipped"
    assert "needs transformers" in row["message"]


def test_a_meta_gradient_that_differs_is_a_row(monkeypatch: pytest.MonkeyPatch):
    ours = loop.meta_step

    def twice(case: Case, steps: int, algorithm: str) -> Callable[[], torch.Tensor]:
        step = ours(case, steps, algorithm)
        return lambda: 2 * step()

    monkeypatch.setattr(loop, "meta_step", twice)
    result = run()
    assert result["loop"][0]["status"] == "differs"
    assert "meta-gradients differ by" in section(result)
