"""Tasks of different ways and shots on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from omniglot_files import background, write_zip
from training import trainer

import fastmeta
from fastmeta.models import conv4
from fastmeta.tasks import VariedEpisodes, load_omniglot
from fastmeta.tasks.few_shot import character_table
from fastmeta.train.checkpoint import load_checkpoint
from fastmeta.train.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--data", "a.zip", "--channels", "4", "--queries", "2", "--meta-batch", "2", "--iterations", "2"]
SHORT = [*SMALL, "--episodes", "3", "--inner-steps", "1", "--out", "run"]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_zip(tmp_path / "a.zip", background({"Greek": 5, "Korean": 3}, drawers=5))


def test_ranges_of_ways_and_shots(capsys):
    assert main(["train", "omniglot", *SHORT, "--ways", "2:4", "--shots", "1:3", "--imbalance", "2"]) == 0
    assert "2:4-way 1:3-shot, imbalance 2, conv4-padded" in capsys.readouterr().out
    settings = load_checkpoint(Path("run/checkpoint.pt"))["configuration"]
    assert (settings["fewest_ways"], settings["ways"], settings["fewest_shots"], settings["shots"]) == (2, 4, 1, 3)
    assert main(["evaluate", "run/checkpoint.pt", "--data", "a.zip", "--episodes", "3"]) == 0
    out = capsys.readouterr().out
    assert "2:4-way 1:3-shot" in out
    assert "bn_statistics" not in out, "there is no choice"
    assert main(["evaluate", "run/checkpoint.pt", "--data", "a.zip", "--episodes", "3", "--shots", "2"]) == 0
    assert "2:4-way 2-shot" in capsys.readouterr().out


def test_within_alphabets_the_smallest_decides(capsys):
    command = ["train", "omniglot", *SHORT, "--within-alphabet", "--shots", "1"]
    assert main([*command, "--ways", "3:5"]) == 0
    assert "3:5-way 1-shot within an alphabet" in capsys.readouterr().out
    assert main([*command, "--ways", "4:5", "--no-resume"]) == 2
    assert "too few in Korean (3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["omniglot", *SHORT, "--ways", "2:4", "--model", "conv4"], "takes its statistics over padding too"),
        (["omniglot", *SHORT, "--shots", "1:3", "--algorithm", "metagan"], "algorithm metagan takes tasks of one size"),
        (["omniglot", *SHORT, "--shots", "1:3", "--inner-batch-size", "2"], "inner_batch_size=2 would cut tasks"),
        (["omniglot", *SHORT, "--shots", "1:3", "--bn-statistics", "support"], "is not for conv4-padded"),
        (["omniglot", *SHORT, "--shots", "1:2", "--train-shots", "2"], "train_shots is for tasks of one size"),
        (["omniglot", *SHORT, "--support-limit", "9"], "support_limit is for tasks whose sizes vary"),
        (["sinusoid", "--shots", "5:10"], "--shots must be one number for task sinusoid, got the range 5:10"),
    ],
)
def test_what_ranges_do_not_go_with(command, message, capsys):
    assert main(["train", *command]) == 2
    assert message in capsys.readouterr().err


def test_a_range_upside_down(capsys):
    with pytest.raises(SystemExit):
        main(["train", "omniglot", *SHORT, "--ways", "4:2"])
    assert "a range goes from the fewest to the most, got 4:2" in capsys.readouterr().err


def test_a_trainer_refuses_a_network_that_sees_padding(tmp_path):
    family = VariedEpisodes(character_table(load_omniglot("a.zip"), ways=2), ways=(2, 3), shots=(1, 2), queries=1)
    with pytest.raises(ValueError, match="outputs for a sample depend on the padding"):
        trainer(tmp_path, algorithm=fastmeta.MAML(conv4(3, channels=4)), family=family)
