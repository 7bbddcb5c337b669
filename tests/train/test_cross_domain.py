"""Checkpoints of few-shot classifiers on images of other data sets, and training on several at once."""

from __future__ import annotations

import re

import pytest
import torch
from image_files import write_cifar, write_pictures
from omniglot_files import background, write_zip

from fastmeta.tasks import Images
from fastmeta.tasks.cross_domain import difference, matched
from fastmeta.train.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_channels_and_size_are_matched():
    pixels = torch.zeros(4, 3, 8, 6, dtype=torch.uint8)
    pixels[0, 0], pixels[1, 1], pixels[2, 2], pixels[3] = 200, 200, 200, 77
    images = Images(pixels, torch.arange(4), "colours")
    grey = matched(images, (1, 8, 6))
    assert grey.pixels[:, 0, 0, 0].tolist() == [60, 117, 23, 77]
    assert grey.labels is images.labels
    back = matched(grey, (3, 16, 12))
    assert back.shape == (3, 16, 12)
    assert (back.pixels == back.pixels[:, :1]).all()
    assert back.pixels[:, 0, 5, 5].tolist() == [60, 117, 23, 77]
    assert torch.equal(matched(images, images.shape).pixels, pixels)
    assert difference(images, (3, 8, 6)) == ""
    assert difference(images, (1, 28, 28)) == "colour to grey (luminance), 8 × 6 to 28 × 28 pixels"
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        matched(images, (2, 8, 6))


def test_omniglot_on_other_images(trained, tmp_path, capsys):
    checkpoint = trained("omniglot").checkpoint
    write_pictures(tmp_path / "photos", {"cats": 6, "dogs": 4, "owls": 5}, size=20)
    assert main(["evaluate", checkpoint, "--data", "photos", "--episodes", "4", "--queries", "1"]) == 0
    out = capsys.readouterr().out
    assert "for the network: colour to grey (luminance), 20 × 20 to 28 × 28 pixels" in out
    assert "maml, trained on task omniglot: 3-way 1-shot" in out
    scores = re.findall(r"(meta-learned|from scratch) +bn_statistics=(\w+) +after 2 inner steps +\d+\.\d\d ± ", out)
    assert scores == [(start, choice) for start in ("meta-learned", "from scratch") for choice in ("batch", "support")]
    assert main(["evaluate", checkpoint, "--data", "photos", "--shots", "4", "--queries", "1"]) == 2
    assert "got 4 + 1, but a class has only 4" in capsys.readouterr().err


def test_glyphs_on_omniglot_and_photographs(trained, tmp_path, capsys):
    checkpoint = trained("glyphs").checkpoint
    write_zip(tmp_path / "new.zip", background({"Latin": 4}, drawers=4))
    write_cifar(tmp_path / "data_batch_1.bin", 16, classes=4)
    for name, said in (("new.zip", "16 grey images of 28 × 28\n"), ("data_batch_1.bin", "32 × 32 to 28 × 28 pixels\n")):
        assert main(["evaluate", checkpoint, "--data", name, "--episodes", "4", "--steps", "0", "1"]) == 0
        out = capsys.readouterr().out
        assert said in out
        assert len(re.findall("before adaptation", out)) == 4


def test_other_images_need_labels(trained, tmp_path, capsys):
    checkpoint = trained("omniglot").checkpoint
    write_pictures(tmp_path, {"photos": 6}, size=20)
    assert main(["evaluate", checkpoint, "--data", "photos"]) == 2
    assert "carries no labels" in capsys.readouterr().err


def test_several_sources_in_one_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_zip(tmp_path / "letters.zip", background({"Latin": 6}, drawers=4))
    write_pictures(tmp_path / "photos", dict.fromkeys(("cats", "dogs", "owls", "bees", "ants", "elks"), 4), size=20)
    command = ["train", "mixed", "--data", "letters.zip", "photos", "--ways", "3", "--queries", "2", "--channels", "4",
               "--iterations", "2", "--meta-batch", "3", "--episodes", "4", "--weights", "3", "1"]  # fmt: skip
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "photos: 24 grey images of 28 × 28, from colour to grey (luminance), 20 × 20 to 28 × 28 pixels" in out
    for name in ("letters.zip", "photos"):
        assert f"accuracy over 4 episodes of unseen classes of {name}, 3-way 1-shot, 95 % confidence:" in out
    assert main([*command[:-1], "2"]) == 2
    assert "weights: ('3', '1') -> ('3', '2')" in capsys.readouterr().err
    assert main([*command[:-1]]) == 2
    assert "weights must be 2 positive numbers, one a source, got [3.0]" in capsys.readouterr().err
    assert main([*command, "--ways", "4", "--no-resume"]) == 2
    assert "leaves 3 of 6 classes of letters.zip" in capsys.readouterr().err
    assert main(["evaluate", "runs/mixed/checkpoint.pt", "--data", "photos", "--episodes", "3"]) == 0
    assert "accuracy over 3 episodes, 95 % confidence" in capsys.readouterr().out
    assert main(["evaluate", "runs/mixed/checkpoint.pt", "--data", "letters.zip", "photos", "--episodes", "3"]) == 0
    out = capsys.readouterr().out
    for name in ("letters.zip", "photos"):
        assert f"accuracy over 3 episodes of unseen classes of {name}, 3-way 1-shot, 95 % confidence" in out
