"""What every algorithm of the registry owes the commands: a new one inherits these tests."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from omniglot_files import background, write_zip

from fastmeta.tasks import Episodes
from fastmeta.tasks.derived import PartlyLabelled
from fastmeta.train.build import make_algorithm, make_model
from fastmeta.train.checkpoint import load_checkpoint
from fastmeta.train.cli import OWN, main
from fastmeta.train.config import Execution, RunConfig
from fastmeta.train.methods.registry import METHODS
from fastmeta.train.presets import PRESETS, start_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"channels": 4, "ways": 3, "queries": 2, "meta_batch": 2, "iterations": 3, "episodes": 4}
FLAGS = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def small(name: str, task: str = "omniglot") -> RunConfig:
    config = PRESETS[start_of(task, name)].config.replace({"algorithm": name})
    shape = {"shape": (1, 28, 28)} if task == "omniglot" else {}
    return config.replace({setting: v for setting, v in {**SMALL, **shape}.items() if setting in config.flat()})


@pytest.fixture
def data(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["--data", str(write_zip(tmp_path / "small.zip", background({"Greek": 4, "Korean": 3}, drawers=4)))]


@pytest.mark.parametrize("name", METHODS)
def test_a_learner_of_its_kind_and_its_state_in_another(name):
    config = small(name)
    learner = make_algorithm(config, make_model(config), Execution(backend="torch"))
    assert type(learner) is config.method.kind
    assert learner.backend == "torch"
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.1)
    again = make_algorithm(config, make_model(config), Execution(), evaluation=True)
    again.load_state_dict(learner.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(learner.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_presets_stand_by_family_and_algorithm(name):
    for task, preset in METHODS[name].presets.items():
        config = PRESETS[f"{task}-{name}"].config
        assert start_of(task, name) == f"{task}-{name}"
        assert (config.tasks.task, config.algorithm.algorithm) == (task, name)
        assert preset.source.endswith(".")
        assert all(config.flat()[setting] == value for setting, value in preset.settings.items())


@pytest.mark.parametrize("name", METHODS)
def test_trained_and_evaluated_on_characters(name, data, capsys):
    assert main(["train", "omniglot", *data, *FLAGS, "--algorithm", name]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\d+\.\d\d ± \d+\.\d\d %", out)
    checkpoint = load_checkpoint(Path("runs/omniglot/checkpoint.pt"))
    assert checkpoint["iteration"] == 3
    assert checkpoint["configuration"]["algorithm"] == name
    assert main(["evaluate", "runs/omniglot/checkpoint.pt", *data, "--episodes", "4"]) == 0


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.classifies])
def test_trained_on_sinusoids(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--iterations", "3", "--episodes", "4", "--algorithm", name]) == 0
    assert re.search(r"\d[\d.]* ± \d", capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["sinusoid", "--algorithm", "protonet"], "algorithm protonet classifies"),
        (["sinusoid", "--strength", "3"], "--strength has no meaning for algorithm maml; it belongs to imaml"),
        (["sinusoid", "--algorithm", "imaml", "--strength", "-1"], "strength"),
        (["sinusoid", "--algorithm", "maml++", "--eval-steps", "9"], "inner_steps=5, and eval_steps=9"),
        (
            ["omniglot", "--algorithm", "abml", "--bn-statistics", "support"],
            "bn_statistics has no meaning for algorithm",
        ),
        (["sinusoid", "--algorithm", "maml++", "--no-per-step-rates", "--learned-lr", "1e-4"], "per_step_rates is off"),
        (["sinusoid", "--algorithm", "reptile", "--first-order"], "Reptile has no first-order form"),
        (["omniglot", "--algorithm", "metagan", "--unlabelled", "1"], "unlabelled must lie in"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_describes_every_setting_of_an_algorithm(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{spec.name.replace('_', '-')}" in text for kind in OWN for spec in fields(kind))


def test_what_is_learned_beside_the_network_has_a_step_size_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--iterations", "2", "--episodes", "4", "--algorithm", "meta-sgd"]
    assert main([*command, "--learned-lr", "0"]) == 0
    together = load_checkpoint(tmp_path / "runs/sinusoid/checkpoint.pt")
    assert len(together["optimizer"]["param_groups"]) == 1
    assert main([*command, "--learned-lr", "1e-9", "--no-resume"]) == 0
    apart = load_checkpoint(tmp_path / "runs/sinusoid/checkpoint.pt")
    first, second = apart["optimizer"]["param_groups"]
    assert (len(first["params"]), len(second["params"])) == (6, 1)
    assert (first["initial_lr"], second["initial_lr"]) == (1e-3, 1e-9)
    assert main([*command, "--learned-lr", "1e-9", "--iterations", "4"]) == 0  # goes on with both


class Classes:
    device = torch.device("cpu")

    def sample(self, tasks, generator):
        y = torch.arange(30).remainder(3).expand(tasks, -1)
        return Episodes(torch.randn(tasks, 30, 2, generator=generator), y, torch.zeros(tasks, 3, 2), y[:, :3])


@pytest.mark.parametrize("share, left", [(0.0, 10), (0.5, 5), (0.99, 1)])
def test_labels_are_hidden_class_by_class(share, left):
    generator = torch.Generator().manual_seed(0)
    _, y, _, query_y = PartlyLabelled(Classes(), unlabelled=share).sample(4, generator)
    assert all((y == label).sum(1).eq(left).all() for label in range(3))
    assert (y == -1).sum() == 4 * 3 * (10 - left)
    assert (query_y >= 0).all()


def test_tasks_without_labels():
    generator = torch.Generator().manual_seed(0)
    _, y, _, query_y = PartlyLabelled(Classes(), unlabelled_tasks=0.5).sample(50, generator)
    without = (y == -1).all(1)
    assert 10 < without.sum() < 40
    assert torch.equal(without, (query_y == -1).all(1))
    with pytest.raises(ValueError, match="unlabelled_tasks"):
        PartlyLabelled(Classes(), unlabelled_tasks=1.0)
