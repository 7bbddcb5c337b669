"""The command line, as a user meets it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from omniglot_files import background, one_shot_runs, write_folder, write_zip

from fastmeta.train.checkpoint import load_checkpoint, save_checkpoint
from fastmeta.train.cli import TASKS, main
from fastmeta.train.config import PARTS, AlgorithmConfig, Execution
from fastmeta.train.flags import given
from fastmeta.train.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--ways", "3", "--queries", "2", "--channels", "4", "--inner-steps", "2", "--meta-batch", "2"]
SHORT = ["--iterations", "3", "--episodes", "6"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Every command runs in an empty folder, where `runs/` is its default output."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(folder) -> str:
    files = background({"Greek": 4, "Korean": 3}, drawers=4)
    return str(write_zip(folder / "images_background.zip", files))


def refused(arguments: list[str], capsys) -> str:
    """The error message of a command that must fail in one clean line, or a few."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    message = captured.err[captured.err.index("error: ") :]
    assert "Traceback" not in captured.err
    return message


# Train.


def test_train_without_arguments(folder, capsys):
    """All defaults but the length."""
    assert main(["train", "--iterations", "40", "--episodes", "30"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"samples [\d,]+ episodes a second", out)
    for line in ("before adaptation", "after 1 inner step ", "after 10 inner steps"):
        assert re.search(rf"{line} +\d[\d.]* ± \d", out), line
    assert load_checkpoint(folder / "runs/sinusoid/checkpoint.pt")["iteration"] == 40
    picture = (folder / "runs/sinusoid/sinusoids.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_the_default_run_is_exact_maml():
    config = PRESETS["sinusoid"].config
    assert (config.algorithm.algorithm, config.tasks.model) == ("maml", "sinusoid-mlp")


def test_train_without_matplotlib(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", *SHORT]) == 0
    assert 'no picture: pictures need Matplotlib: pip install "fastmeta[train]"' in capsys.readouterr().out
    assert (folder / "runs/sinusoid/checkpoint.pt").exists()


def test_train_without_pillow(data, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    message = refused(["train", "omniglot", "--data", data], capsys)
    assert message == 'error: reading images needs Pillow: pip install "fastmeta[train]"\n'


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
def test_train_and_evaluate_omniglot(folder, data, capsys, algorithm):
    options = ["--rotations", "--mirrored", "--augment", "1", "--augment-classes", "0.5", "--within-alphabet"]
    command = ["train", "omniglot", "--data", data, "--algorithm", algorithm, *SMALL, *SHORT, *options]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "7 characters of 2 alphabets (Greek 4, Korean 3)" in out
    assert re.search(r"after 2 inner steps +\d+\.\d\d ± \d+\.\d\d %", out)
    checkpoint = "runs/omniglot/checkpoint.pt"
    test_data = write_folder(folder / "test", background({"Latin": 5, "Tagalog": 2}, drawers=4))
    command = ["evaluate", checkpoint, "--data", str(test_data), "--episodes", "8"]
    assert main([*command, "--exclude-alphabets", "Tagalog", "--steps", "0", "4"]) == 0
    out = capsys.readouterr().out
    assert "5 characters of 1 alphabets (Latin 5)" in out
    assert "3-way 1-shot within an alphabet" in out
    assert "accuracy over 8 episodes" in out
    for statistics in ("batch  ", "support"):
        for when in ("before adaptation", "after 4 inner steps"):
            assert re.search(rf"bn_statistics={statistics} +{when} +\d+\.\d\d ± \d+\.\d\d %", out)
    assert "Tagalog (2)" in refused(command, capsys)
    assert main([*command, "--no-within-alphabet", "--bn-statistics", "support"]) == 0
    assert "bn_statistics=batch" not in capsys.readouterr().out


def test_evaluate_the_official_runs(folder, trained, capsys):
    checkpoint = trained("omniglot").checkpoint
    runs = write_zip(folder / "all_runs.zip", one_shot_runs(4, 3, root="all_runs/"))
    capsys.readouterr()
    assert main(["evaluate", checkpoint, "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "4 official runs, 3-way" in out
    found = re.findall(r"bn_statistics=(\w+) +after 2 inner steps +(\d+\.\d\d) ±", out)
    assert [name for name, _ in found] == ["batch", "support"]
    # Test images have the pixels of their class: even a hardly trained network tells most of three apart.
    assert all(float(accuracy) > 50 for _, accuracy in found)
    both = ["evaluate", checkpoint, "--runs", str(runs), "--data", "images_background.zip", "--episodes", "3"]
    assert main(both) == 0
    out = capsys.readouterr().out
    assert "official runs" in out
    assert "3 episodes" in out
    larger = write_zip(folder / "large.zip", one_shot_runs(1, 5))
    message = refused(["evaluate", checkpoint, "--runs", str(larger)], capsys)
    assert message == "error: the runs have 5 classes, the checkpoint's network 3\n"


def test_presets_are_starting_points(folder, data, capsys):
    command = ["train", "--preset", "reptile-5w1s", "--data", data, *SHORT, "--train-shots", "2"]
    assert main([*command, "--channels", "3", "--eval-steps", "4"]) == 0
    settings = load_checkpoint(folder / "runs/reptile-5w1s/checkpoint.pt")["configuration"]
    expected = PRESETS["reptile-5w1s"].config.flat() | {
        "iterations": 3,
        "episodes": 6,
        "train_shots": 2,
        "channels": 3,
        "eval_steps": 4,
        "shape": (1, 28, 28),
    }
    assert {name: settings[name] for name in expected} == expected
    assert "reptile, 5-way 1-shot" in capsys.readouterr().out


def test_training_resumes(folder, data, capsys):
    command = ["train", "omniglot", "--data", data, *SMALL, "--episodes", "6", "--out"]
    assert main([*command, "a", "--iterations", "2"]) == 0
    assert main([*command, "a", "--iterations", "5"]) == 0
    captured = capsys.readouterr()
    assert "finished at iteration 5" in captured.out
    assert "resuming a/checkpoint.pt at iteration 2" in captured.err
    assert main([*command, "b", "--iterations", "5", "--schedule", "cosine"]) == 0
    assert load_checkpoint(folder / "a/checkpoint.pt")["iteration"] == 5
    assert load_checkpoint(folder / "b/checkpoint.pt")["iteration"] == 5


def test_another_configuration_is_refused(folder, trained, capsys):
    command = trained("omniglot").command
    before = (folder / "runs/omniglot/checkpoint.pt").read_bytes()
    message = refused([*command, "--inner-lr", "0.3", "--rotations"], capsys)
    assert "inner_lr: 0.4 -> 0.3" in message
    assert "rotations" not in message, "the default has rotations already"
    message = refused([*command, "--exclude-alphabets", "Korean"], capsys)
    assert "exclude_alphabets: () -> ('Korean',)" in message
    assert re.search(r"data: \w+ -> \w+", message)
    other = write_zip(folder / "other.zip", background({"Latin": 5}, drawers=4))
    assert re.search(r":\n  data: \w+ -> \w+\nAsk", refused([*command, "--data", str(other)], capsys))
    assert (folder / "runs/omniglot/checkpoint.pt").read_bytes() == before
    assert main([*command, "--inner-lr", "0.3", "--no-resume"]) == 0


def test_runs_of_older_versions_resume_and_are_scored(folder, data, capsys):
    """Their checkpoints have the settings of all families, 0 for what is automatic, and the network's state alone."""
    command = ["train", "omniglot", "--data", data, *SMALL, "--episodes", "6", "--schedule", "constant"]
    assert main([*command, "--iterations", "2", "--out", "a"]) == 0
    assert main([*command, "--iterations", "4", "--out", "b"]) == 0
    path = folder / "a/checkpoint.pt"
    state = load_checkpoint(path)
    del state["algorithm"]
    configuration = {name: value or 0 for name, value in state["configuration"].items()}
    assert configuration["train_shots"] == configuration["eval_steps"] == configuration["inner_batch_size"] == 0
    del configuration["inner_beta1"]
    state["configuration"] = configuration | {"alphabets": (), "exclude_alphabets": (), "window": 8, "vocabulary": ""}
    save_checkpoint(path, state)
    assert main(["evaluate", "a/checkpoint.pt", "--data", data, "--episodes", "3"]) == 0
    assert main([*command, "--iterations", "4", "--out", "a"]) == 0
    assert "resuming a/checkpoint.pt at iteration 2" in capsys.readouterr().err
    resumed, straight = (load_checkpoint(folder / name / "checkpoint.pt") for name in ("a", "b"))
    assert all(torch.equal(value, straight["model"][name]) for name, value in resumed["model"].items())
    assert "rotations: True -> False" in refused(
        [*command, "--iterations", "5", "--out", "a", "--no-rotations"], capsys
    )


def test_moved_data_is_no_other_configuration(folder, trained, capsys):
    command = trained("omniglot").command
    copy = write_folder(folder / "copy", background({"Greek": 4, "Korean": 3}, drawers=4))
    assert main([*command, "--data", str(copy)]) == 0
    assert "resuming runs/omniglot/checkpoint.pt at iteration 3" in capsys.readouterr().err


def test_ctrl_c_saves_and_says_how_to_resume(folder):
    code = "import sys; from fastmeta.train.cli import main; sys.exit(main())"
    arguments = ["train", "--iterations", "1000000", "--checkpoint-seconds", "0"]
    command = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        checkpoint = folder / "runs/sinusoid/checkpoint.pt"
        deadline = time.monotonic() + 60
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert re.search(r"SIGINT at iteration [\d,]+; checkpoint: runs/sinusoid/checkpoint\.pt", out)
    assert f"resume with: fastmeta {' '.join(arguments)}" in out
    assert "Traceback" not in err
    assert load_checkpoint(checkpoint)["iteration"] > 0


# Explain and help.


@pytest.mark.parametrize("target", ["sinusoid-mlp", "conv4", "maml-5w1s"])
def test_explain(target, capsys):
    assert main(["explain", target, "--inner-steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "MAML, 2 inner step(s)" in out
    assert "backend: " in out
    assert "loss: " in out


def test_explain_a_checkpoint(trained, capsys):
    assert main(["explain", trained("sinusoid").checkpoint]) == 0
    assert "FOMAML, 1 inner step(s)" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "evaluate", "explain"])
def test_help_describes_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--device" in text
    assert "None" not in text
    options = {
        "train": (*TASKS, *PARTS.values(), Execution),
        "evaluate": (Execution,),
        "explain": (AlgorithmConfig, Execution),
    }[command]
    words = " ".join(text.split()).replace("- ", "-")
    for spec in (spec for kind in options for spec in fields(kind) if spec.metadata.get("flag", True)):
        assert f"--{spec.name.replace('_', '-')} " in words, spec.name
        assert " ".join(spec.metadata["help"].split()).replace("- ", "-") in words, spec.name


def test_sources_of_presets_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(preset.source.split()) in text for preset in PRESETS.values())


def test_as_a_module(folder):
    """`python -m fastmeta` is `fastmeta`, usage and exit codes included."""
    for arguments, code in ((["--version"], 0), (["train", "--help"], 0), (["train", "chess"], 2), (["list"], 0)):
        command = [sys.executable, "-m", "fastmeta", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done.stderr
        text = done.stdout + done.stderr
        assert "__main__" not in text
        if "train" in arguments:
            assert text.startswith("usage: fastmeta train ")


def test_no_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


# Bad input: one clear message, exit code 2.


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train omniglot", "task omniglot needs data: name with --data Omniglot's zip files"),
        ("train omniglot --data absent.zip", "absent.zip does not exist"),
        (
            "train --ways 5",
            "--ways has no meaning for task sinusoid; it belongs to omniglot, glyphs, images, umtra, cactus",
        ),
        ("train --data x.zip", "--data has no meaning for task sinusoid, which makes its own"),
        ("train sinusoid --preset maml-5w1s", "--preset maml-5w1s is for task omniglot, got task sinusoid"),
        ("train --iterations -1", "iterations must be an integer of at least 0, got -1"),
        ("train --inner-lr -0.1", "SGD.lr must be"),
        ("train --inner-steps -2", "inner_steps must be"),
        ("train --outer-lr nan", "outer_lr must be finite and not negative, got nan"),
        ("train --shots 0", "shots must be an integer of at least 1, got 0"),
        ("train --inner-batch-size 11", "inner_batch_size"),
        ("train --episodes 0 --iterations 0", "episodes must be an integer of at least 1, got 0"),
        ("train --time-limit 0", "time_limit must be a positive number of minutes or None, got 0.0"),
        ("train --device abacus", "device 'abacus' cannot be used"),
        ("train --backend triton --device cpu", 'backend="triton"'),
        ("train --out file", "File exists"),
        ("evaluate absent.pt", "there is no checkpoint at absent.pt"),
        ("evaluate file", "file is damaged or no checkpoint"),
        ("explain absent", "target must be a checkpoint or one of sinusoid, omniglot"),
    ],
)
def test_errors(arguments, message, folder, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (folder / "file").write_text("no checkpoint")
    assert message in refused(arguments.split(), capsys)


def test_evaluating_needs_something_to_score(trained, capsys):
    assert "needs data" in refused(["evaluate", trained("omniglot").checkpoint], capsys)


def test_a_sinusoid_checkpoint_takes_no_data(data, trained, capsys):
    checkpoint = trained("sinusoid").checkpoint
    assert "have no meaning for sinusoids" in refused(["evaluate", checkpoint, "--data", data], capsys)
    assert main(["evaluate", checkpoint, "--episodes", "9"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"mean squared error over 9 episodes.*\n  after 10 inner steps +\d", out)


def test_traceback_on_request():
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        main(["evaluate", "absent.pt", "--traceback"])


def test_damaged_data(folder, data, capsys):
    path = Path(data)
    path.write_bytes(path.read_bytes()[:-300])
    message = refused(["train", "omniglot", "--data", data], capsys)
    assert "images_background.zip is not a readable zip file" in message
    assert message.count("\n") == 1
    assert not (folder / "runs").exists()


def test_damaged_checkpoint_is_not_overwritten(folder, trained, capsys):
    command = trained("sinusoid").command
    checkpoint = folder / "runs/sinusoid/checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    damaged = checkpoint.read_bytes()
    assert "is damaged or no checkpoint" in refused(command, capsys)
    assert checkpoint.read_bytes() == damaged


def test_options_not_given_leave_the_preset_alone():
    from argparse import Namespace

    from fastmeta.train.config import AlgorithmConfig
    from fastmeta.train.families.omniglot import OmniglotSettings

    arguments = Namespace(inner_lr=0.0, inner_steps=None, alphabets=["A"], rotations=False)
    assert given(arguments, AlgorithmConfig) == {"inner_lr": 0.0}
    assert given(arguments, OmniglotSettings) == {"alphabets": ("A",), "rotations": False}
