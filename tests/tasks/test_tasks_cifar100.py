"""CIFAR-FS and FC100 from a miniature of CIFAR-100's files, and pickles that would run a program."""

from __future__ import annotations

import hashlib
import os
import pickle
from importlib.resources import files

import numpy as np
import pytest
import torch

from fastmeta.tasks import load_images
from fastmeta.tasks.datasets.cifar100 import division_of
from fastmeta.tasks.datasets.plain_pickle import load_plain

pytestmark = pytest.mark.usefixtures("one_thread")

COARSE = ("aquatic_mammals", "fish", "large_carnivores")
FINE = {"seal": 0, "whale": 0, "beaver": 0, "trout": 1, "shark": 1, "bear": 2, "leopard": 2}


def records():
    """Two images of each class for train, one for test: pixels hold the class's number."""
    for count in (2, 1):
        fine = np.repeat(np.arange(len(FINE)), count)
        coarse = np.array(list(FINE.values()))[fine]
        yield fine, coarse, np.repeat(fine[:, None], 3072, 1).astype(np.uint8)


def binary(folder):
    for name, (fine, coarse, pixels) in zip(("train.bin", "test.bin"), records(), strict=True):
        (folder / name).write_bytes(np.column_stack([coarse, fine, pixels]).astype(np.uint8).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")


def python(folder):
    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))

    for name, (fine, coarse, pixels) in zip(("train", "test"), records(), strict=True):
        write(name, {b"data": pixels, b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()})
    names = {b"fine_label_names": FINE, b"coarse_label_names": COARSE}
    write("meta", {key: [name.encode() for name in value] for key, value in names.items()})


def classes(images, part):
    return {images.classes[i] for i in images.labels[images.rows_of(part)].tolist()}


@pytest.mark.parametrize("write", [binary, python])
def test_published_divisions(tmp_path, write):
    write(tmp_path)
    images = load_images([f"cifar-fs={tmp_path}"])
    assert [classes(images, part) for part in ("train", "val", "test")] == [
        {"seal", "trout", "bear"}, {"beaver", "shark"}, {"whale", "leopard"}
    ]  # fmt: skip
    assert [list(FINE)[i] for i in images.pixels[:, 0, 0, 0].tolist()] == [images.classes[i] for i in images.labels]
    assert torch.bincount(images.labels).tolist() == [3] * 7, "images of both files"
    other = load_images([f"fc100={tmp_path}"])
    assert [classes(other, part) for part in ("train", "val", "test")] == [
        {"trout", "shark"}, {"bear", "leopard"}, {"seal", "whale", "beaver"}
    ]  # fmt: skip
    assert other.describe().startswith("fc100: 21 colour images of 32 × 32, divided by the classes of fc100 (train 6")


@pytest.mark.parametrize("name, counts", [("cifar-fs", [64, 16, 20]), ("fc100", [12, 4, 4])])
def test_the_lists_are_whole(name, counts):
    text = files("fastmeta.tasks.datasets").joinpath("splits", f"{name}.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] in text
    assert np.bincount(list(division_of(name).values())).tolist() == counts


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fetch cifar-100-python\.tar\.gz \(161 MB\) from .*--data fc100="):
        load_images([f"fc100={tmp_path}"])
    with pytest.raises(ValueError, match=r"cifar-fs needs the folder of its files: --data cifar-fs=FOLDER"):
        load_images(["cifar-fs"])
    binary(tmp_path)
    (tmp_path / "test.bin").write_bytes(bytes(5))
    with pytest.raises(ValueError, match=r"test\.bin does not consist of whole records of 3074 bytes"):
        load_images([f"fc100={tmp_path}"])


class Program:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_bytes(pickle.dumps({b"data": Program()}))
    with pytest.raises(ValueError, match=r"bad is no pickle of arrays \(it asks for posix\.mkdir"):
        load_plain(tmp_path / "bad")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cut").write_bytes(pickle.dumps(np.arange(50))[:-30])
    with pytest.raises(ValueError, match="cut is no pickle of arrays"):
        load_plain(tmp_path / "cut")
