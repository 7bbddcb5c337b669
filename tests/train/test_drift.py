"""`fastmeta drift`: a meta-learned start along streams of changing tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from omniglot_files import background, write_zip

from fastmeta.train import drift
from fastmeta.train.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def few_step_sizes(monkeypatch):
    monkeypatch.setattr(drift, "LR_FACTORS", (0.3,))


def test_sinusoids(trained, capsys, monkeypatch):
    checkpoint = trained("sinusoid").checkpoint
    command = ["drift", checkpoint, "--streams", "3", "--phases", "2", "--chunks", "2", "--steps", "1"]
    course, calls = drift.Drift._course, []

    def stopped(self, *arguments):
        calls.append(arguments[:2])
        if len(calls) == 2:
            raise RuntimeError("killed")
        return course(self, *arguments)

    monkeypatch.setattr(drift.Drift, "_course", stopped)
    assert main(command) == 2
    assert main(command) == 0
    assert calls[1] == calls[2], "what was finished is not done again"
    assert len(calls) == 7
    out = capsys.readouterr().out
    for name in drift.LEARNERS:
        assert re.search(rf"\| {name} \| × 0\.3 \| \d[\d.]* \| – \| \d[\d.]* \| \d[\d.]* \|", out)
    folder = Path(checkpoint).parent
    courses = json.loads((folder / "drift.json").read_text())["courses"]
    anew, on = (courses[name] for name in drift.LEARNERS[:2])
    assert anew["present"][:2] == on["present"][:2], "after one chunk they are where adaptation from the start leads"
    assert anew["present"][2] != on["present"][2]
    assert anew["present"][0] == anew["first"][0]
    assert courses[drift.LEARNERS[0]]["present"] != courses[drift.LEARNERS[2]]["present"]
    assert (folder / "drift.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--phases", "3"]) == 2
    assert "is the result of another checkpoint, other data or other settings" in capsys.readouterr().err


def test_alphabets(trained, tmp_path, capsys):
    checkpoint = trained("omniglot").checkpoint
    write_zip(tmp_path / "new.zip", background({"Greek": 3, "Latin": 4}, drawers=5))
    command = [
        "drift",
        checkpoint,
        "--data",
        "new.zip",
        "--streams",
        "2",
        "--phases",
        "2",
        "--chunks",
        "2",
        "--steps",
        "1",
    ]
    assert main([*command, "--out", "d"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\| meta-learned, going on \| × [\d.]+ \| \d+\.\d\d % \| \d+\.\d\d % \|", out)
    present = json.loads(Path("d/drift.json").read_text())["courses"][drift.LEARNERS[0]]["present"]
    assert len(present) == 4
    assert main([*command[:-6], "--phases", "3", "--out", "e"]) == 2
    assert "phases must be at most the number of alphabets, got 3 of 2" in capsys.readouterr().err


def test_other_checkpoints_are_refused(trained, capsys):
    assert main(["drift", trained("glyphs").checkpoint]) == 2
    assert "checkpoint must be of task sinusoid or omniglot, got one of glyphs" in capsys.readouterr().err
