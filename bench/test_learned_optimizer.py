"""The learned optimiser beside tuned ones: the losses are those of the optimisers, and the best step size is taken."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmeta.tasks import Quadratics

from . import learned_optimizer as learned
from .report import section

QUICK = replace(
    learned.Settings(),
    iterations=2,
    steps=4,
    unroll=2,
    hidden=(3,),
    validation=6,
    tuning=6,
    testing=5,
    dimensions=3,
    functions=2,
)


def test_a_run_writes_what_it_returns_and_draws_it(tmp_path: Path):
    result = learned.run(QUICK, threads=1, out=tmp_path / "x.json", figure=tmp_path / "x.png")
    written = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert written["learned optimizer"]["curves"] == result["learned optimizer"]["curves"]
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    curves = result["learned optimizer"]["curves"]
    assert list(curves) == [learned.LEARNED, *learned.PEERS]
    starts = {each["mean"][0] for each in curves.values()}
    assert len(starts) == 1  # all start at the same θ on the same functions
    assert all(len(each["mean"]) == len(each["half"]) == QUICK.steps + 1 for each in curves.values())
    assert "| Adam |" in section(result)


def test_losses_of_an_optimizer_are_those_of_one_function_at_a_time():
    functions = Quadratics(dimensions=3).sample(4, torch.Generator().manual_seed(0))
    for make in learned.PEERS.values():
        together = learned.losses_of(make, 0.02, functions, 5)
        for t in range(4):
            theta = torch.zeros(3, requires_grad=True)
            optimizer, losses = make([theta], lr=0.02), []
            for _ in range(6):
                loss = (functions.support_x[t] @ theta - functions.support_y[t, :, 0]).square().sum()
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            torch.testing.assert_close(together[t], torch.tensor(losses))


def test_losses_of_the_learned_one_are_those_of_adapt():
    family = Quadratics(dimensions=3)
    functions = family.sample(4, torch.Generator().manual_seed(0))
    learner = learned.trained(QUICK, family, torch.Generator().manual_seed(1), functions)
    losses = learned.losses_of_learned(learner, functions, 4)
    for steps in (0, 2, 4):
        outputs = learner.adapt(functions.support_x, functions.support_y, steps=steps)(functions.support_x)
        torch.testing.assert_close(losses[:, steps], (outputs - functions.support_y).square().sum((1, 2)).detach())


def test_the_best_step_size_of_the_grid_is_taken_and_an_end_of_it_is_said(monkeypatch: pytest.MonkeyPatch):
    functions = Quadratics(dimensions=3).sample(16, torch.Generator().manual_seed(0))
    best = learned.tuned(torch.optim.Adam, functions, 20)
    finals = {lr: learned.losses_of(torch.optim.Adam, lr, functions, 20)[:, -1].mean().item() for lr in learned.GRID}
    assert finals[best] == min(value for value in finals.values() if math.isfinite(value))
    monkeypatch.setattr(learned, "GRID", (1e-4, 1e-3))
    with pytest.warns(UserWarning, match="lies at an end of the grid"):
        learned.tuned(torch.optim.Adam, functions, 20)


def test_beaten_are_those_whose_losses_are_surely_larger():
    curves = {name: {"ahead": [mean, 0.1]} for name, mean in zip(learned.PEERS, (0.2, -0.3, 0.05), strict=True)}
    assert learned.beaten({"learned optimizer": {"curves": {learned.LEARNED: {}} | curves}}) == ["SGD"]
