"""Sources of images: arrays, data sets, folders, zip files, CIFAR-10, glyphs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from image_files import numbered, write_cifar, write_pictures
from omniglot_files import background, one_shot_runs, write_zip
from torch.utils.data import Dataset, TensorDataset

from fastmeta.tasks import (
    Glyphs,
    Images,
    Sinusoid,
    as_images,
    as_text,
    draw_glyphs,
    draw_waves,
    load_cifar10,
    load_images,
    load_omniglot,
    load_runs,
)
from fastmeta.tasks.cactus import Clustered

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape", [(4, 9, 7), (4, 1, 9, 7), (4, 9, 7, 1), (4, 3, 9, 7), (4, 9, 7, 3)])
@pytest.mark.parametrize("kind", ["numpy", "torch", "float"])
def test_arrays_and_tensors(shape, kind):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    source = {"numpy": x, "torch": torch.from_numpy(x), "float": x.astype(np.float32) / 255}[kind]
    images = as_images(source)
    expected = x[:, None] if x.ndim == 3 else x if x.shape[1] in (1, 3) else x.transpose(0, 3, 1, 2)
    assert np.array_equal(images.pixels.numpy(), expected)
    assert images.labels is None


class Pairs(Dataset):
    """Three images with labels."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return np.full((6, 6, 3), 40 * i, dtype=np.uint8), 2 - i


def test_data_sets():
    images = as_images(Pairs())
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 40, 80]
    assert images.labels.tolist() == [2, 1, 0]
    assert images.shape == (3, 6, 6)
    alone = as_images(TensorDataset(torch.rand(5, 1, 6, 6)), size=4)
    assert alone.shape == (1, 4, 4)
    assert alone.labels is None


def test_a_folder_of_pictures(tmp_path):
    folder = write_pictures(tmp_path / "pictures", {"cats": 2, "dogs": 3})
    images = as_images(folder)
    assert images.shape == (3, 12, 12)
    assert images.labels.tolist() == [0, 0, 1, 1, 1]
    assert as_images(folder / "dogs").labels is None
    assert as_images(folder, size=8).shape == (3, 8, 8)
    assert load_images([folder, folder]).labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


def test_pictures_of_several_sizes_need_one(tmp_path):
    folder = write_pictures(tmp_path / "pictures", {"a": 2})
    write_pictures(folder, {"b": 1}, size=20, mode="L")
    with pytest.raises(ValueError, match=r"holds images of 2 sizes.*choose one size \(--image-size\)"):
        as_images(folder)
    assert as_images(folder, size=10).shape == (3, 10, 10), "grey ones join the coloured ones"


def test_omniglot_is_recognised(tmp_path):
    path = write_zip(tmp_path / "small.zip", background({"Greek": 3, "Latin": 2}, drawers=4))
    images, characters = as_images(path), load_omniglot([path])
    assert torch.equal(images.pixels.squeeze(1), characters.images.flatten(0, 1))
    assert images.labels.tolist() == [i for i in range(5) for _ in range(4)]
    assert torch.equal(as_images(characters).pixels, images.pixels)


def test_cifar(tmp_path):
    path = write_cifar(tmp_path / "data_batch_1.bin", 12)
    images, labels = load_cifar10(path)
    assert images[7, :, 3, 5].tolist() == [7, 107, 207]
    assert labels.tolist() == [*range(10), 0, 1]
    write_cifar(tmp_path / "data_batch_2.bin", 5)
    both = as_images(tmp_path)
    assert len(both) == 17
    assert as_images(path).labels.tolist() == labels.tolist()
    assert load_images([path, path]).labels.max() == 9, "the files of CIFAR-10 share their classes"


def test_the_folder_and_the_test_file_of_cifar_share_their_classes(tmp_path):
    write_cifar(tmp_path / "data_batch_1.bin", 20)
    test_file = write_cifar(tmp_path / "test_batch.bin", 10)
    images = load_images([tmp_path, test_file])
    assert images.labels.tolist() == [*range(10), *range(10), *range(10)]
    assert images.pixels[25, 0, 0, 0] == 5, "the labels are those of the images"
    pictures = write_pictures(tmp_path / "pictures", {"a": 1, "b": 1}, size=32)
    mixed = load_images([pictures, tmp_path, test_file])
    assert mixed.labels.tolist() == [0, 1, *[2 + i % 10 for i in range(30)]], "classes of other paths are their own"
    assert load_images([test_file, pictures, tmp_path]).labels.unique().numel() == 12


def test_data_sets_introduce_themselves_in_a_line(tmp_path):
    characters = load_omniglot([write_zip(tmp_path / "small.zip", background({"Greek": 3, "Latin": 2}, drawers=4))])
    lines = {
        "Characters(5 characters of 2 alphabets (Greek 3, Latin 2))": characters,
        "Images(Omniglot: 20 grey images of 28 × 28, 5 classes)": as_images(characters),
        "Images(images: 9 colour images of 5 × 7, no labels)": as_images(np.zeros((9, 5, 7, 3), dtype=np.uint8)),
        "ClassTable(20 images of (1, 28, 28), 5 classes of 4 images, 1 group)": as_images(characters).table(),
        "Series(random waves: 3 series of 3 groups, 360 steps of 1 number(s))": draw_waves(3),
        "Text(text: 5 characters, 4 different ones)": as_text("hello"),
        "Clustered(images: 9 grey images of 8 × 8; 2 partitions into 1 clusters)": Clustered(
            as_images(np.zeros((9, 8, 8), dtype=np.uint8)), torch.zeros(2, 9, dtype=torch.int64)
        ),
        "Run(run01: 3 classes, 3 test images)": load_runs(write_zip(tmp_path / "r.zip", one_shot_runs(1, 3)))[0],
        "Glyphs(ways=5, shots=1, queries=2, device='cpu')": Glyphs(ways=5, shots=1, queries=2),
        "Sinusoid(shots=3, queries=4, device='cpu')": Sinusoid(shots=3, queries=4),
        "Episodes(support_x=float32 [2, 3, 1], support_y=float32 [2, 3, 1], query_x=float32 [2, 4, 1], "
        "query_y=float32 [2, 4, 1])": Sinusoid(shots=3, queries=4).sample(2, torch.Generator()),
    }
    assert {repr(value): value for value in lines.values()}.keys() == lines.keys()


def test_real_cifar(shared):
    images = load_images([shared / "data/cifar-10-batches-bin/test_batch.bin"])
    assert images.shape == (3, 32, 32)
    assert torch.bincount(images.labels).tolist() == [200] * 10
    assert 100 < images.pixels.float().mean() < 140


@pytest.mark.parametrize(
    "size, message",
    [
        (0, "does not consist of whole records"),
        (3072, "3,072 bytes, 3,072 too many"),
        (3074, "3,074 bytes, 1 too many"),
    ],
)
def test_truncated_cifar(tmp_path, size, message):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=message):
        as_images(path)


def test_corrupt_cifar(tmp_path):
    path = write_cifar(tmp_path / "data_batch_1.bin", 4)
    data = bytearray(path.read_bytes())
    data[2 * 3073] = 77
    path.write_bytes(data)
    with pytest.raises(ValueError, match="record 2 has label 77, CIFAR-10's go from 0 to 9"):
        as_images(path)


@pytest.mark.parametrize(
    "source, message",
    [
        (np.zeros((4, 5)), r"images must be \[n, H, W\].*got \[4, 5\]"),
        (np.zeros((4, 2, 5, 5)), "with C = 1 or 3"),
        (np.zeros((0, 3, 5, 5)), r"got \[0, 3, 5, 5\]"),
        (np.full((4, 5, 5), 7.0), r"must lie in \[0, 1\], got values from 7 to 7"),
        (np.full((4, 5, 5), np.nan), r"must lie in \[0, 1\], got values from nan"),
        (np.zeros((4, 5, 5), dtype=np.int64), "must be uint8, or floating point in .*got int64"),
    ],
)
def test_bad_arrays(source, message):
    with pytest.raises(ValueError, match=message):
        as_images(source)


def test_bad_sources(tmp_path):
    with pytest.raises(TypeError, match=r"source must be an array, a tensor.*got list"):
        as_images([1, 2])
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        as_images(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no images"):
        as_images(tmp_path)
    (tmp_path / "x.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.npy is no array of images"):
        as_images(tmp_path / "x.npy")
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.png is not a readable image"):
        as_images(tmp_path)


def test_pictures_need_pillow(tmp_path, monkeypatch):
    write_pictures(tmp_path, {"a": 1})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RuntimeError, match=r'reading images needs Pillow: pip install "fastmeta\[train\]"'):
        as_images(tmp_path)


def test_classes_are_held_out_whole():
    images = numbered(25, labels=True)
    first, last = images.split_classes(0.4)
    assert (first.labels.unique().tolist(), last.labels.unique().tolist()) == ([0, 1, 2], [3, 4])
    assert len(first) + len(last) == 25
    with pytest.raises(ValueError, match="labelled images only"):
        images.unlabelled().split_classes(0.4)


def test_fingerprints_tell_pixels_apart():
    images = numbered(5)
    assert images.fingerprint() == numbered(5, labels=True).fingerprint()
    other = Images(images.pixels.flip(0), None)
    assert images.fingerprint() != other.fingerprint()


# Glyphs.


def test_glyphs_are_classes():
    """Drawings of a class are nearer to each other than to those of other classes, mostly; classes never repeat."""
    family = Glyphs(ways=6, shots=1, queries=3, augment=0.3)
    generator = torch.Generator().manual_seed(0)
    episodes = family.sample(20, generator)
    assert episodes.support_x.shape == (20, 6, 1, 28, 28)
    assert episodes.query_y.tolist()[0] == [0, 1, 2, 3, 4, 5] * 3
    assert episodes.support_x.min() == 0
    assert episodes.support_x.max() == 1
    distances = torch.cdist(episodes.query_x.flatten(2), episodes.support_x.flatten(2))
    assert (distances.argmin(2) == episodes.query_y).double().mean() > 0.6
    ink = episodes.support_x.mean((1, 2, 3, 4))
    assert ink.min() > 0.02
    assert ink.max() < 0.35
    again = family.sample(20, generator)
    assert not torch.equal(again.support_x, episodes.support_x)
    repeated = family.sample(20, torch.Generator().manual_seed(0))
    assert torch.equal(repeated.query_x, episodes.query_x)


def test_a_fixed_set_of_glyphs():
    images = draw_glyphs(12, 3, size=20, seed=4)
    assert images.shape == (1, 20, 20)
    assert images.labels.tolist() == [i for i in range(12) for _ in range(3)]
    assert images.fingerprint() == draw_glyphs(12, 3, size=20, seed=4).fingerprint()
    assert images.fingerprint() != draw_glyphs(12, 3, size=20, seed=5).fingerprint()


@pytest.mark.parametrize("options", [{"ways": 1}, {"shots": 0}, {"queries": 0}, {"size": 4}, {"augment": -1.0}])
def test_bad_glyphs(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))} must .*, got"):
        Glyphs(**{"ways": 2, "shots": 1, "queries": 1} | options)
