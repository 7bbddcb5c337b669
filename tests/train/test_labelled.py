"""`fastmeta train images`: one's own labelled images, divided by their files or by a share of classes."""

from __future__ import annotations

import pytest
import torch
from image_files import numbered, write_divided, write_pictures

from fastmeta.tasks import as_images
from fastmeta.train.cli import main
from fastmeta.train.families.registry import FAMILIES
from fastmeta.train.pipeline import prepare
from fastmeta.train.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def run(**changes):
    return PRESETS["images"].config.replace({"channels": 4, "ways": 2, "queries": 1, **changes}).tasks


def seen(family):
    """Rows of the images that a family draws from."""
    return set(family._members[family._members >= 0].tolist())


def test_the_parts_of_the_data_are_kept_apart(tmp_path):
    source = as_images(write_divided(tmp_path))
    images = FAMILIES["images"]
    learned = seen(images.train(run(), source, CPU))
    tests = images.tests(run(held_out=0.9), source, CPU)
    assert list(tests) == ["episodes of the test part, unseen classes", "episodes of the val part, unseen classes"]
    test, val = map(seen, tests.values())
    assert (learned, val, test) == (set(range(6)), set(range(6, 12)), set(range(12, 18)))


def test_without_parts_a_share_of_the_classes_is_kept():
    images, source = FAMILIES["images"], numbered(25, labels=True)
    assert seen(images.train(run(held_out=0.4), source, CPU)) == set(range(15))
    ((title, test),) = images.tests(run(held_out=0.4), source, CPU).items()
    assert (title, seen(test)) == ("episodes of unseen classes", set(range(15, 25)))
    ((title, test),) = images.tests(run(held_out=0.0), source, CPU).items()
    assert (title, seen(test)) == ("new episodes of the classes trained on", set(range(25)))


@pytest.mark.parametrize("task", ["umtra", "cactus", "ssl-images", "inr"])
def test_unlabelled_families_keep_the_parts_apart(task, tmp_path):
    _, source = prepare(PRESETS[task].config, [str(write_divided(tmp_path))])
    learned, unseen = source.split_classes(0.2)
    assert learned.labels.unique().tolist() == [0, 1]
    assert unseen.labels.unique().tolist() == [4, 5]
    assert not set(learned.pixels.unique().tolist()) & set(unseen.pixels.unique().tolist())


def test_what_is_printed(trained):
    run = trained("images")
    assert "mini: 18 colour images of 20 × 20, divided by train.csv, val.csv, test.csv (train 6 of 2 classes" in run.out
    assert "accuracy over 4 episodes of the test part, unseen classes" in run.out
    assert "accuracy over 4 episodes of the val part, unseen classes" in run.out


@pytest.mark.parametrize(
    "make, options, message",
    [
        (write_divided, ["--ways", "3", "--shots", "1", "--queries", "1"],
         "the train part of set has 2 classes by train.csv, val.csv, test.csv, but 3 ways need 3: ask for fewer ways"),
        (lambda folder: write_pictures(folder, dict.fromkeys("abcdefghij", 4)), ["--ways", "5", "--queries", "1"],
         "--held-out 0.2 leaves 2 of 10 classes to score on, but 5 ways need 5: --held-out 0.46 leaves enough"),
        (lambda folder: write_pictures(folder, {"a": 5}) / "a", [],
         "a carries no labels, which task images learns from"),
        (write_divided, ["--ways", "2", "--shots", "3", "--queries", "1"], "got 3 + 1, but a class has only 3"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_training(tmp_path, capsys, make, options, message):
    folder = make(tmp_path / "set")
    assert main(["train", "images", "--data", str(folder), "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists()
