"""Commands on data without labels: trained, resumed, compared and evaluated as a user does."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from command_line import NETWORK, SHORT, Run, short_stages
from image_files import write_cifar, write_pictures
from omniglot_files import background, write_zip

from fastmeta.models import MODELS
from fastmeta.train.checkpoint import load_checkpoint
from fastmeta.train.cli import main
from fastmeta.train.families.registry import FAMILIES
from fastmeta.train.methods.registry import METHODS
from fastmeta.train.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """Every command runs in a folder of its own, where `runs/` is its default output."""
    monkeypatch.chdir(tmp_path)
    with short_stages():
        yield tmp_path


@pytest.fixture
def omniglot(folder) -> str:
    return str(write_zip(folder / "small.zip", background({"Greek": 6, "Latin": 9}, drawers=6)))


def refused(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err[captured.err.index("error: ") :]


def rows(out: str, start: str) -> list[str]:
    """The cells of a start in every table of the output."""
    return [line for line in out.splitlines() if line.strip().startswith(start)]


def test_list(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in (*FAMILIES, *PRESETS, *METHODS, *MODELS):
        assert re.search(rf"^  {re.escape(name)} +\S", out, re.MULTILINE), name


def test_umtra(folder, trained, capsys):
    command, out, _ = trained("umtra")
    assert "small.zip: 90 grey images of 28 × 28" in out
    assert "labelled episodes of unseen classes, 3-way 1-shot: accuracy, % over 4 episodes" in out
    assert len(rows(out, "from scratch")) == len(rows(out, "meta-learned")) == 1
    assert (folder / "runs/umtra/curves.png").read_bytes().startswith(b"\x89PNG")
    (comparison,) = json.loads((folder / "runs/umtra/curves.json").read_text())
    assert list(comparison["curves"]["meta-learned"]["scores"]) == ["0", "1", "2"]
    assert main(command) == 0
    assert "resuming runs/umtra/checkpoint.pt at iteration 3" in capsys.readouterr().err


def test_evaluate_on_other_data(folder, trained, capsys):
    """The run's own data are split as in training; of other data all classes count."""
    checkpoint = trained("umtra").checkpoint
    assert main(["evaluate", checkpoint, "--data", "small.zip", "--episodes", "3"]) == 0
    assert "labelled episodes of unseen classes" in capsys.readouterr().out
    other = write_pictures(folder / "pictures", {"a": 4, "b": 4, "c": 4}, size=28, mode="L")
    assert main(["evaluate", checkpoint, "--data", str(other), "--episodes", "3", "--steps", "0", "3"]) == 0
    out = capsys.readouterr().out
    assert "labelled episodes, 3-way 1-shot" in out
    assert "0 steps" in out
    assert "3 steps" in out
    assert (folder / "runs/umtra/evaluation.png").exists()
    colour = write_pictures(folder / "colour", {"a": 4, "b": 4, "c": 4}, size=28)
    assert main(["evaluate", checkpoint, "--data", str(colour), "--episodes", "3"]) == 0
    assert "grey" in capsys.readouterr().out  # as the network takes them, and said
    message = refused(["evaluate", checkpoint, "--data", "small.zip", "--within-alphabet"], capsys)
    assert "--within-alphabet has no meaning for task umtra; it belongs to omniglot" in message
    assert "--runs has no meaning for task umtra" in refused(["evaluate", checkpoint, "--runs", "x"], capsys)


def test_images_without_labels(folder, capsys):
    pictures = write_pictures(folder / "pictures", {"all": 12}, size=20)
    assert main(["train", "umtra", "--data", str(pictures), "--image-size", "16", *NETWORK, *SHORT]) == 0
    out = capsys.readouterr().out
    assert "12 colour images of 16 × 16" in out
    assert "tasks of its own, as the images have no labels" in out


def test_cactus(folder, trained, capsys):
    command, out, _ = trained("cactus")
    assert "autoencoder, 3 iterations: runs/cactus/autoencoder" in out
    assert "2 partitions into 6 clusters" in out
    assert "labelled episodes of unseen classes" in out
    (path,) = (folder / "runs/cactus").glob("partitions-*.npy")
    found = np.load(path)
    assert found.shape == (2, 72), "the images of twelve classes of fifteen, six of each"
    assert main(["evaluate", "runs/cactus/checkpoint.pt", "--data", "small.zip", "--episodes", "3"]) == 0
    assert len(rows(capsys.readouterr().out, "meta-learned")) == 1
    message = refused(["evaluate", "runs/cactus/checkpoint.pt", "--episodes", "3"], capsys)
    assert "this run has made none of these; give the data that it was trained on" in message
    (folder / "runs/cactus/checkpoint.pt").unlink()
    assert main(command) == 0
    again = capsys.readouterr().out
    assert rows(again, "meta-learned") == rows(out, "meta-learned"), "a resumed run keeps its clusters"
    assert "autoencoder, 3" not in again


def test_cactus_of_a_given_embedding(folder, omniglot, capsys):
    np.save(folder / "codes.npy", np.random.default_rng(0).normal(size=(90, 3)))
    options = ["--embedding", "codes.npy", "--clusters", "6", "--queries", "1", "--partitions", "2"]
    command = ["train", "cactus", "--data", omniglot, *NETWORK, *SHORT, *options]
    assert "must hold a row for each of the 72 images to learn from, got 90" in refused(command, capsys)
    assert main([*command, "--held-out", "0"]) == 0
    assert not (folder / "runs/cactus/autoencoder").exists()


def test_cluster(folder, trained):
    run = trained("cluster")
    out = run.out
    for measure in ("clustering accuracy, %", "normalised mutual information, %", "AUROC, %", "reconstruction error"):
        assert f"{measure} over 4 episodes" in out
    assert len(rows(out, "pre-trained")) == 4
    assert re.search(r"k-means on the pixels: clustering accuracy \d", out)
    for name in ("curves.png", "curves-codes.png"):
        assert (folder / "runs/cluster" / name).read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", run.checkpoint, "--data", "small.zip", "--episodes", "2"]) == 0


def test_ssl_images(folder, trained, capsys):
    check_ssl_images(folder, trained("ssl-images"), capsys)


def test_ssl_images_with_the_network_of_its_preset(folder, trained, capsys):
    """A ResNet-18: the same, by another command."""
    command = trained("ssl-images").command[:-2]
    assert main([*command, "--no-resume"]) == 0
    captured = capsys.readouterr()
    check_ssl_images(folder, Run(command, captured.out, captured.err), capsys)


def check_ssl_images(folder, run, capsys):
    _, out, err = run
    assert re.findall(r"^(\d+)/15  adapting with step size", err, re.MULTILINE) == [str(n) for n in range(15)]
    assert "plain pre-training, 2 iterations: runs/ssl-images/pretrained" in out
    assert "pretexts trained on, 4-way 1-shot" in out
    assert "new pretext rotation, 4-way 1-shot" in out
    assert "labels, 4-way 1-shot" in out
    assert "labels by a linear probe on 96 images: accuracy, % over 24 unseen images" in out
    for start in ("from scratch", "pre-trained", "meta-learned"):
        assert len(rows(out, start)) == 4
    assert "pretext colours needs colour images" in refused(["train", "ssl-images", "--pretexts", "colours"], capsys)
    assert load_checkpoint(folder / "runs/ssl-images/pretrained/checkpoint.pt")["iteration"] == 2


@pytest.mark.parametrize("model", ["forecast-mlp", "forecast-lstm"])
def test_ssl_series(capsys, model):
    options = ["--model", model, "--width", "5", "--pretrain-iterations", "4", "--shots", "3", "--window", "4"]
    assert main(["train", "ssl-series", *SHORT, *options]) == 0
    out = capsys.readouterr().out
    assert "random waves: 200 series of 200 groups" in out
    assert "unseen groups: mean squared error over 4 episodes" in out
    assert len(rows(out, "pre-trained")) == 1
    assert "ways" not in out


def test_ssl_text(folder, trained, capsys):
    run = trained("ssl-text")
    assert "unseen passages: accuracy, % over 4 episodes" in run.out
    (folder / "b.txt").write_text("something else, with Ünknown letters. " * 10)
    assert main(["evaluate", run.checkpoint, "--data", "b.txt", "--episodes", "2"]) == 0
    assert "b.txt: 380 characters" in capsys.readouterr().out


def test_glyphs_need_no_data(trained):
    run = trained("glyphs")
    assert "new glyphs: accuracy, %" in run.out
    assert main(["explain", run.checkpoint]) == 0


@pytest.mark.parametrize("target", ["cactus", "ssl-text", "forecast-lstm", "cluster"])
def test_explain(target, capsys):
    assert main(["explain", target, "--inner-steps", "1"]) == 0
    assert "backend: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train ssl-text", "task ssl-text needs data: name with --data UTF-8 text files"),
        ("train glyphs --data x", "--data has no meaning for task glyphs"),
        ("train umtra --window 4", "--window has no meaning for task umtra; it belongs to ssl-series"),
        ("train ssl-series --model conv4", "model conv4 does not fit task ssl-series"),
        ("train ssl-series --window 400", "wave 0 needs two series of at least 401 steps"),
        ("train umtra --pretrain-iterations 3", "task umtra has no plain pre-training"),
        ("train ssl-images --image-size 8", "at least 14 × 14 pixels, got 8 × 8"),
        ("train ssl-images --pretexts shape", "pretext must be one of rotation"),
        ("train umtra --held-out 1", "held_out must lie in [0, 1), got 1.0"),
        ("train umtra --data empty", "holds no images"),
        ("train ssl-text --data empty.txt", "empty.txt is empty"),
        ("train ssl-text --data zero.txt", "zero.txt is binary"),
        ("train umtra --data cut.bin", "does not consist of whole records"),
        ("train umtra --data file.csv", "says which images there are, and holds none"),
    ],
)
def test_errors(arguments, message, folder, capsys):
    (folder / "empty").mkdir()
    (folder / "empty.txt").write_text("")
    (folder / "zero.txt").write_bytes(b"a\0b")
    (folder / "cut.bin").write_bytes(bytes(5000))
    (folder / "file.csv").write_text("1,2\n")
    assert message in refused(arguments.split(), capsys)


@pytest.mark.parametrize(
    "arguments, message, cure",
    [
        (
            f"umtra --data pictures {' '.join(NETWORK)} --ways 5",
            "--held-out 0.2 leaves 1 of 7 classes to score on, but 5 ways need 5: --held-out 0.65 leaves enough, or "
            "ask for fewer ways (--ways) or give images of more classes",
            "0.65",
        ),
        (
            "cactus --data pictures --clusters 3 --partitions 1 --latent 2 --channels 2 --queries 1 --ways 3",
            "--held-out 0.2 leaves 1 of 7 classes to score on, but 3 ways need 3: --held-out 0.36 leaves enough",
            "0.36",
        ),
        (
            "cluster --data pictures --channels 2 --ways 3 --shots 2 --queries 2 --pretrain-iterations 1",
            "--held-out 0.2 leaves 1 of 7 classes to score on, but 3 ways and one class of anomalies need 4: "
            "--held-out 0.51 leaves enough",
            "0.51",
        ),
        (
            "cluster --data pictures --ways 4 --shots 2 --queries 2",
            "4 ways and one class of anomalies need 5: ask for fewer ways (--ways) or give images of more classes",
            None,
        ),
        (
            "ssl-images --data pictures --channels 2 --ways 2 --shots 1 --queries 3 --pretrain-iterations 1",
            "--held-out 0.1 leaves 4 of 42 images to score on, but 2 ways of 1 shots and 3 queries need 8: "
            "--held-out 0.18 leaves enough",
            "0.18",
        ),
        (
            "ssl-text --data a.txt --passage 200 --length 8 --width 4 --pretrain-iterations 1",
            "--held-out 0.2 leaves 84 of 420 characters to score on, but passages need 200: --held-out 0.48 leaves "
            "enough, or ask for a shorter --passage or give more text",
            "0.48",
        ),
    ],
)
def test_too_little_to_score_on_is_found_before_training(arguments, message, cure, folder, capsys, monkeypatch):
    monkeypatch.setattr("fastmeta.train.trainer.Trainer.run", Mock(side_effect=RuntimeError("training begins")))
    write_pictures(folder / "pictures", dict.fromkeys("abcdefg", 6), size=28, mode="L")
    (folder / "a.txt").write_text("to be or not to be, that is the question. " * 10)
    held_out = ["--held-out", "0.1"] if arguments.startswith("ssl-images") else []
    command = ["train", *arguments.split(), *SHORT]
    assert message in refused([*command, *held_out], capsys)
    assert not (folder / "runs").exists(), "nothing was trained"
    if cure is not None:
        assert refused([*command, "--held-out", cure], capsys) == "error: training begins\n"


@pytest.mark.parametrize("option", ["--episodes 0", "--eval-steps -1", "--inner-steps -1", "--task-chunk -1"])
def test_what_evaluation_refuses_is_refused_before_training(option, folder, capsys):
    assert f"{option.split()[0][2:].replace('-', '_')} must be" in refused(
        ["train", "ssl-series", *SHORT, "--width", "4", *option.split()], capsys
    )
    assert not (folder / "runs").exists()


def test_ssl_images_of_classes_too_small_for_episodes(omniglot, capsys):
    """Of six drawings a character one or two are kept: no episodes of labels, but everything else."""
    options = ["--ways", "4", "--shots", "3", "--pretrain-iterations", "1", "--queries", "3", "--channels", "2"]
    options += ["--model", "conv4", "--held-out", "0.4"]
    assert main(["train", "ssl-images", "--data", omniglot, *SHORT, *options]) == 0
    out = capsys.readouterr().out
    assert "new pretext rotation, 4-way 3-shot" in out
    assert "labels, 4-way" not in out
    assert "labels by a linear probe" in out


def test_without_scikit_learn_there_is_no_probe_but_the_rest(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    path = str(write_cifar(folder / "data_batch_1.bin", 120, classes=4))
    options = ["--ways", "4", "--shots", "1", "--pretrain-iterations", "1", "--queries", "1", "--channels", "2"]
    options += ["--model", "conv4"]
    assert main(["train", "ssl-images", "--data", path, *SHORT, *options]) == 0
    out = capsys.readouterr().out
    assert 'no linear probe: a linear probe needs scikit-learn: pip install "fastmeta[train]"' in out
    assert len(rows(out, "meta-learned")) == 3


def test_missing_libraries_name_the_extra(omniglot, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    command = ["train", "cactus", "--data", omniglot, *NETWORK, *SHORT]
    assert 'clustering needs scikit-learn: pip install "fastmeta[train]"' in refused(command, capsys)
    assert main(["train", "glyphs", *NETWORK, *SHORT]) == 0
    assert 'no picture: pictures need Matplotlib: pip install "fastmeta[train]"' in capsys.readouterr().out
