"""The examples of docs/examples run, and resume."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import fastmeta
from fastmeta.models import CategoricalPolicy

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SMALL = [
    *("--tasks", "2", "--episodes", "3", "--horizon", "5", "--goals", "4", "--steps", "2"),
    *("--inner-lr", "0.1", "--lr", "0.01"),
]


def example(name: str) -> ModuleType:
    """The module of an example, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_navigation_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("matplotlib")
    report = example("navigation").main([*SMALL, "--iterations", "2", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "navigation.json").read_text()) == report
    assert (tmp_path / "navigation.png").stat().st_size > 10_000
    for name in ("MAML", "pre-trained", "from scratch"):
        assert len(report[name]["mean"]) == len(report[name]["interval95"]) == 3
        assert str(report[name]["rate"]) in report[name]["by_rate"]
    assert "from scratch  rate" in capsys.readouterr().out


def test_navigation_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    navigation = example("navigation")
    monkeypatch.setattr(navigation, "SAVE_EVERY", 2)
    options = [*SMALL, "--iterations", "4", "--out"]
    whole, halves = (navigation.parse([*options, str(tmp_path / name)]) for name in ("whole", "halves"))
    for each in (whole, halves):
        each.out.mkdir()

    def killed(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        raise KeyboardInterrupt

    want = navigation.train(whole, "MAML", navigation.start(whole))
    save = navigation.save
    with monkeypatch.context() as patch:
        patch.setattr(navigation, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            navigation.train(halves, "MAML", navigation.start(halves))
    state = navigation.start(halves)
    assert state["runs"]["MAML"]["iteration"] == 2
    got = navigation.train(halves, "MAML", state)
    assert state["runs"]["MAML"]["iteration"] == 4
    for name, value in want.state_dict().items():
        assert torch.equal(value, got.state_dict()[name])


def test_navigation_does_not_mix_runs_of_other_settings(tmp_path: Path):
    navigation = example("navigation")
    options = navigation.parse([*SMALL, "--iterations", "1", "--out", str(tmp_path)])
    navigation.train(options, "MAML", navigation.start(options))
    with pytest.raises(SystemExit, match="holds a run of other settings"):
        navigation.start(navigation.parse([*SMALL, "--iterations", "1", "--seed", "5", "--out", str(tmp_path)]))


class Counters:
    """A vector environment of two copies: adds up actions, and ends at a limit of each copy's own, then starts anew."""

    LIMITS = np.array([2, 3])

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        self.at = np.zeros(2)
        return self.at[:, None].astype(np.float64), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert actions.shape == (2,)
        self.at = self.at + 1
        ended = self.at == self.LIMITS
        observations = self.at[:, None].copy()
        self.at[ended] = 0
        return observations, actions + 1.0, ended & (self.LIMITS == 2), ended & (self.LIMITS == 3), {}


def test_gymnasium_loop_plays_one_episode_in_each_environment():
    drawn = example("gymnasium_loop").play([Counters(), Counters(), Counters()], ones, horizon=10)
    drawn.check()
    assert drawn.observations.shape == (3, 2, 3, 1)  # all have ended after three steps
    assert drawn.observations[0, :, :, 0].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert drawn.mask[2].tolist() == [[True, True, False], [True, True, True]]
    assert drawn.totals().tolist() == [5.0, 5.0, 5.0]  # (2 + 2 + 2 + 2 + 2) / 2
    assert example("gymnasium_loop").play([Counters()], ones, horizon=1).rewards.shape == (1, 2, 1)


def ones(observations: torch.Tensor) -> torch.Tensor:
    return torch.ones(observations.shape[:2], dtype=torch.int64)


def test_gymnasium_loop_feeds_a_learner():
    play = example("gymnasium_loop").play
    learner = fastmeta.PolicyMAML(
        CategoricalPolicy(torch.nn.Linear(1, 2)), inner_optimizer=fastmeta.SGD(lr=0.1),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    out = learner.step(lambda act: play([Counters(), Counters()], act, horizon=4))
    out.loss.backward()
    assert out.returns.shape == (2, 2)
    assert all(p.grad is not None and p.grad.norm() > 0 for p in learner.module.parameters())


def test_gymnasium_loop_with_gymnasium(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("gymnasium")
    history = example("gymnasium_loop").main(
        ["--iterations", "2", "--tasks", "2", "--episodes", "3", "--horizon", "12"]
    )  # fmt: skip
    assert len(history) == 2
    assert all(1 <= value <= 12 for pair in history for value in pair)
    assert "before and after one inner step" in capsys.readouterr().out


def test_gymnasium_loop_without_gymnasium_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(SystemExit, match="pip install gymnasium"):
        example("gymnasium_loop").main(["--iterations", "1"])
