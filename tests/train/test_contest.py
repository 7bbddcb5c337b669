"""`fastmeta compare`: several algorithms for the same time on the same tasks."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from omniglot_files import background, write_zip

from fastmeta.train import contest
from fastmeta.train.cli import main
from fastmeta.train.contest import Contest, entries
from fastmeta.train.methods.registry import METHODS
from fastmeta.train.pipeline import Pipeline
from fastmeta.train.trainer import Outcome, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ["--seconds", "0.2", "--episodes", "6"]
SMALL = ["--ways", "3", "--queries", "2", "--channels", "4", "--meta-batch", "2"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(folder) -> list[str]:
    seen = write_zip(folder / "seen.zip", background({"Greek": 4, "Korean": 3}, drawers=4))
    unseen = write_zip(folder / "unseen.zip", background({"Latin": 5}, drawers=4))
    return ["--data", str(seen), "--test-data", str(unseen)]


def test_curves_of_errors(folder, capsys):
    assert main(["compare", "sinusoid", "--algorithms", "maml", "fomaml", *SHORT, "--eval-steps", "3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\| maml \| \d[\d.]* ± \d", out)
    kept = json.loads((folder / "runs/compare-sinusoid/contest.json").read_text())
    assert [row["algorithm"] for row in kept["rows"]] == ["maml", "fomaml"]
    assert all(list(row["scores"]) == ["0", "1", "2", "3"] for row in kept["rows"])
    assert (folder / "runs/compare-sinusoid/contest.png").read_bytes().startswith(b"\x89PNG")


def test_accuracies_on_characters_that_nobody_trained_on(data, capsys):
    command = ["compare", "omniglot", *data, *SMALL, *SHORT, "--algorithms", "maml", "reptile", "--shots", "1", "2"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "| algorithm | 3-way 1-shot | 3-way 2-shot | meta-steps |" in out
    assert re.search(r"\| reptile \| \d+\.\d\d ± \d+\.\d\d %, ECE \d+\.\d % \| \d+\.\d\d ± ", out)
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("result.json")}
    assert len(before) == 4
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("result.json")} == before
    capsys.readouterr()
    assert main([*command, "--channels", "5"]) == 2
    assert "is the result of other settings, data or seconds" in capsys.readouterr().err
    write_zip(Path("other.zip"), background({"Tagalog": 5}, drawers=4))
    assert main([*command, "--test-data", "other.zip"]) == 2
    assert "is the result of other settings, data or seconds" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on(folder, capsys, monkeypatch):
    command = ["compare", "sinusoid", "--algorithms", "maml", "fomaml", *SHORT]
    whole, calls = Trainer._step, []

    def step(self):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        whole(self)

    monkeypatch.setattr(Trainer, "_step", step)
    assert main(command) == 128 + signal.SIGTERM
    assert f"resume with: fastmeta {' '.join(command)}" in capsys.readouterr().out
    assert not list(Path("runs").rglob("result.json"))
    assert main(command) == 0
    rows = json.loads((folder / "runs/compare-sinusoid/contest.json").read_text())["rows"]
    speed = json.loads((folder / "runs/compare-sinusoid/maml-10-shot/speed.json").read_text())
    assert rows[0]["iterations"] == max(1, round(0.2 / speed["seconds of a meta-step"]))


def test_only_an_algorithm_that_has_a_setting_is_trained_with_several_of_it():
    found = entries(["maml", "metagan"], "omniglot", changes={}, vary={"shots": (5,), "unlabelled": (0.0, 0.5)})
    names = ["maml-5-way-5-shot", "metagan-5-way-5-shot", "metagan-5-way-5-shot-50-unlabelled"]
    assert [entry.name for entry in found] == names
    assert [entry.config.flat().get("unlabelled") for entry in found] == [None, 0.0, 0.5]


def test_data_are_read_once_for_entries_of_the_same_tasks(data, monkeypatch):
    read, load = [], contest.load_source
    monkeypatch.setattr(contest, "load_source", lambda *arguments: read.append(1) or load(*arguments))
    assert main(["compare", "omniglot", *data, *SMALL, *SHORT, "--algorithms", "maml", "fomaml"]) == 0
    assert len(read) == 2  # to train on, and to score on


def test_a_speed_of_other_settings_is_measured_again(folder, monkeypatch):
    command = ["compare", "sinusoid", "--algorithms", "maml", *SHORT]
    monkeypatch.setattr(Pipeline, "train", lambda self: Outcome(0, "SIGTERM", signal.SIGTERM))
    times = iter((1e-3, 2e-3, 3e-3))
    monkeypatch.setattr(Contest, "_step_seconds", lambda *_: next(times))
    speeds = []
    for more in ([], [], ["--meta-batch", "3"]):
        assert main([*command, *more]) == 128 + signal.SIGTERM
        path = folder / "runs/compare-sinusoid/maml-10-shot/speed.json"
        speeds.append(json.loads(path.read_text())["seconds of a meta-step"])
    assert speeds == [1e-3, 1e-3, 2e-3]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["sinusoid", "--algorithms", "maml", "maml"], "algorithms must be different"),
        (["sinusoid", "--seconds", "0"], "seconds must be positive"),
        (["omniglot"], "needs data"),
    ],
)
def test_what_is_refused(capsys, arguments, message):
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_published_figures_stand_beside_measured_ones():
    for name, method in METHODS.items():
        for setting, published in method.published.items():
            assert re.match(r"\d+(\.\d+)?( ± \d+(\.\d+)?)?$", published.score), name
            assert published.source, name
            (entry,) = entries([name], setting.task, changes={"shots": setting.shots}, vary={})
            if setting.ways in (0, 5):
                assert entry.published == published


def test_settings_that_no_entry_has():
    with pytest.raises(ValueError, match="meta_batch"):
        entries(["maml"], "sinusoid", changes={"meta_batch": 0}, vary={})
    with pytest.raises(ValueError, match="seconds"):
        Contest([], folder=Path("x"), seconds=-1.0)
