"""Images in the files and objects that people have: divided folders, arrays, IDX, data sets; and damaged ones."""

from __future__ import annotations

import gzip
import struct
import zipfile

import numpy as np
import pytest
import torch
from image_files import write_divided, write_pictures
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from fastmeta.tasks import as_images, load_images
from fastmeta.tasks.datasets import cache

pytestmark = pytest.mark.usefixtures("one_thread")


def names(images, part):
    """Classes of a part, by name."""
    return sorted({images.classes[i] for i in images.labels[images.rows_of(part)].tolist()})


def cifar_fs(folder):
    """Folders of classes under data/, and lists of classes under splits/bertinetto/."""
    write_pictures(folder / "data", dict.fromkeys("abcdef", 2))
    (folder / "splits" / "bertinetto").mkdir(parents=True)
    for part, classes in (("train", "abd"), ("val", "c"), ("test", "ef")):
        (folder / "splits" / "bertinetto" / f"{part}.txt").write_text("\n".join(classes) + "\n")
    return folder


# Divisions.


def test_csv_files_divide_one_folder(tmp_path):
    images = as_images(write_divided(tmp_path / "mini"))
    assert [names(images, part) for part in images.parts] == [["n00", "n01"], ["n02", "n03"], ["n04", "n05"]]
    shades = images.pixels[:, 0, 0, 0].long()
    assert torch.equal(shades // 40, images.labels), "labels are those of the images"
    first, last = images.split_classes(0.5)
    assert (len(first), len(last)) == (6, 6)
    assert "divided by train.csv, val.csv, test.csv (train 6 of 2 classes, val 6 of 2 classes" in images.describe()
    assert images.fingerprint() != images.take(torch.arange(17)).fingerprint()


def test_lists_of_classes_divide_folders(tmp_path):
    images = as_images(cifar_fs(tmp_path / "cifar"))
    assert [names(images, part) for part in images.parts] == [["a", "b", "d"], ["c"], ["e", "f"]]
    assert "train.txt, val.txt, test.txt" in repr(images)


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_folders_divide(tmp_path, val):
    for part, classes in (("train", "ab"), (val, "c"), ("test", "de")):
        write_pictures(tmp_path / "set" / part, dict.fromkeys(classes, 2))
    images = as_images(tmp_path / "set")
    assert [names(images, part) for part in images.parts] == [["a", "b"], ["c"], ["d", "e"]]
    assert f"the folders train, {val}, test" in images.describe()
    assert [names(as_images(tmp_path), part) for part in images.parts] == [["a", "b"], ["c"], ["d", "e"]]


def test_parts_may_share_their_classes(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        write_pictures(tmp_path / part, {"a": count, "b": count})
    images = as_images(tmp_path)
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    assert images.part.tolist() == [0] * 6 + [2] * 2


def test_a_zip_file_is_divided_as_its_folder_is(tmp_path):
    folder = write_divided(tmp_path / "mini")
    with zipfile.ZipFile(tmp_path / "mini.zip", "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(tmp_path))
    assert as_images(tmp_path / "mini.zip").fingerprint() == as_images(folder).fingerprint()


def test_a_folder_called_train_alone_is_a_class(tmp_path):
    images = as_images(write_pictures(tmp_path, {"train": 2, "car": 2}))
    assert images.part is None
    assert images.labels.tolist() == [0, 0, 1, 1]


def spoil(folder, what):
    """What people's folders are like."""
    splits = folder / "splits" / "bertinetto"
    if what == "no images":
        for path in folder.glob("images/n00*"):
            path.unlink()
    elif what == "twice":
        (folder / "test.csv").write_text((folder / "train.csv").read_text())
    elif what == "one column":
        (folder / "test.csv").write_text("n0400000000.png\n")
    elif what == "two divisions":
        (folder / "other").mkdir()
        (folder / "other" / "train.csv").write_text("filename,label\n")
    elif what == "class twice":
        (splits / "test.txt").write_text("e\nf\na\n")
    elif what == "unnamed":
        (splits / "test.txt").write_text("e\n")
    elif what == "absent":
        (splits / "test.txt").write_text("e\nf\ng\n")
    elif what == "two folders":
        write_pictures(folder / "more", {"a": 1})


@pytest.mark.parametrize(
    "make, what, message",
    [
        (write_divided, "no images", r"train\.csv names 3 images that are not there.*n000{8}\.png; unpack the images"),
        (write_divided, "twice", r"test\.csv names n000{8}\.png, which train\.csv names too"),
        (write_divided, "one column", r"test\.csv must hold rows of an image and its label"),
        (write_divided, "two divisions", "two files for the train part.*keep those of one division"),
        (cifar_fs, "class twice", r"test\.txt names class a, which .*train\.txt names before"),
        (cifar_fs, "unnamed", "1 classes that no split file names, such as f; add them to one file"),
        (cifar_fs, "absent", "1 classes that no folder holds images of, such as g; unpack them"),
        (cifar_fs, "two folders", "holds two folders of class a; rename one"),
    ],
)
def test_split_files_that_do_not_fit(tmp_path, make, what, message):
    folder = make(tmp_path / "set")
    spoil(folder, what)
    with pytest.raises(ValueError, match=message):
        as_images(folder)


def test_images_that_no_split_names_are_left_out_and_that_is_said(tmp_path):
    folder = write_divided(tmp_path)
    Image.new("RGB", (20, 20)).save(folder / "images" / "more.png")
    images = as_images(folder)
    assert len(images) == 18
    assert "1 images that it does not name are left out" in images.describe()


def test_divided_and_undivided_data_are_not_mixed(tmp_path):
    divided, plain = write_divided(tmp_path / "mini"), write_pictures(tmp_path / "plain", {"a": 1, "b": 1}, size=20)
    with pytest.raises(ValueError, match="mini is divided into training and test parts, and the other data are not"):
        load_images([divided, plain])


# Files of arrays.


def test_arrays_stay_in_their_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    np.save(tmp_path / "x-labels.npy", np.array(["b", "a", "b", "c", "a", "c"]))
    images = as_images(tmp_path / "x.npy")
    assert images.mapped
    assert np.array_equal(images.pixels.numpy(), pixels.transpose(0, 3, 1, 2))
    assert images.classes == ("a", "b", "c")
    assert images.labels.tolist() == [1, 0, 1, 2, 0, 2]
    assert images.take(torch.arange(2, 5)).mapped, "neighbours are not copied"
    assert images.fingerprint() == as_images(pixels).fingerprint()
    np.save(tmp_path / "x-labels.npy", np.zeros(5, dtype=int))
    with pytest.raises(ValueError, match=r"x-labels\.npy: labels must be \[6\], one an image, got \[5\]"):
        as_images(tmp_path / "x.npy")


def test_npz_files(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 5), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=x, labels=np.arange(4)[:, None])
    assert as_images(tmp_path / "a.npz").labels.tolist() == [0, 1, 2, 3]
    np.savez(tmp_path / "b.npz", train_images=x, train_labels=np.arange(4), x_test=x[:2], y_test=np.arange(2))
    divided = as_images(tmp_path / "b.npz")
    assert divided.part.tolist() == [0, 0, 0, 0, 2, 2]
    assert divided.labels.tolist() == [0, 1, 2, 3, 0, 1]
    np.savez(tmp_path / "c.npz", pictures=x)
    with pytest.raises(ValueError, match=r"c\.npz holds pictures, and no array of images is known.*call it images"):
        as_images(tmp_path / "c.npz")
    (tmp_path / "d.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"d\.npz is no \.npz file of arrays"):
        as_images(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", images=np.array([object()]))
    with pytest.raises(ValueError, match=r"e\.npz is no \.npz file of arrays"):
        as_images(tmp_path / "e.npz")


def write_idx(path, array):
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_idx_files(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    labels = np.array([2, 1, 0, 0, 1, 2], dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", x[:4])
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels[:4])
    test = write_idx(tmp_path / "t10k-images-idx3-ubyte", x[4:])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels[4:])
    images = as_images(tmp_path)
    order = torch.cat([images.rows_of("train"), images.rows_of("test")])
    assert np.array_equal(images.pixels[order, 0].numpy(), x)
    assert images.labels[order].tolist() == labels.tolist()
    alone = as_images(test)
    assert (alone.part, alone.labels.tolist()) == (None, [1, 2])
    test.write_bytes(test.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"says that it holds \[2, 5, 4\], and has 39 bytes.*truncated"):
        as_images(tmp_path)
    test.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is no IDX file of 3 dimensions of bytes: it begins with 6e 6f 74 68"):
        as_images(tmp_path)


def test_real_mnist(shared):
    images = as_images(shared / "data/mnist")
    assert images.shape == (1, 28, 28)
    assert torch.bincount(images.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# Data sets.


class Items(Dataset):
    """Whatever is given."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class HuggingFace(Items):
    """What `datasets.Dataset` has."""

    def __init__(self, *items, names=None):
        super().__init__(*items)
        self.column_names = ["image", "label"]
        self.features = {"label": type("ClassLabel", (), {"names": names})()}

    def __iter__(self):
        return iter(self.items)


LAB = Image.new("LAB", (4, 4), (99, 30, 90))
PALETTE = Image.new("P", (4, 4), 1)
PALETTE.putpalette([0, 0, 0, 250, 120, 10])


@pytest.mark.parametrize(
    "image, pixel",
    [
        (PALETTE, [250, 120, 10]),
        (Image.new("RGB", (4, 4), (1, 2, 3)), [1, 2, 3]),
        (Image.new("RGBA", (4, 4), (1, 2, 3, 200)), [1, 2, 3]),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), [255, 0, 0]),
        (Image.new("YCbCr", (4, 4), (77, 128, 128)), [77, 77, 77]),
        (Image.new("HSV", (4, 4), (0, 255, 255)), [255, 0, 0]),
        (
            Image.new("LAB", (4, 4), (99, 30, 90)),
            [*Image.new("LAB", (1, 1), (99, 30, 90)).convert("RGB").getpixel((0, 0))],
        ),
        (Image.new("L", (4, 4), 9), [9]),
        (Image.new("LA", (4, 4), (9, 100)), [9]),
        (Image.new("1", (4, 4), 1), [255]),
        (Image.new("I", (4, 4), 200), [200]),
        (Image.new("F", (4, 4), 0.2), [51]),
        (Image.fromarray(np.full((4, 4), 257 * 40, dtype=np.uint16)), [40]),
        (np.full((4, 4), 7, dtype=np.uint8), [7]),
        (np.full((4, 4, 3), 0.2), [51, 51, 51]),
        (torch.full((1, 4, 4), 0.2), [51]),
    ],
)
def test_images_of_every_kind(image, pixel):
    assert as_images(Items(image)).pixels[0, :, 1, 1].tolist() == pixel


@pytest.mark.parametrize("image", [Image.new("I", (4, 4), 256), Image.new("F", (4, 4), 1.5)])
def test_pixels_out_of_range(image):
    with pytest.raises(
        ValueError, match=rf"Items\[0\]: pixels of mode {image.mode} must lie in .*save it with 8 or 16"
    ):
        as_images(Items(image))


def grey(value):
    return np.full((4, 4), value, dtype=np.uint8)


def test_items_of_every_kind():
    assert as_images(Items((grey(1), "cat"), (grey(2), "ant"), (grey(3), "cat"))).classes == ("ant", "cat")
    pairs = Items({"img": grey(1), "fine_label": torch.tensor(1)}, {"img": grey(2), "fine_label": np.int64(0)})
    assert as_images(pairs).labels.tolist() == [1, 0]
    hugging = HuggingFace({"image": grey(1), "label": 0}, {"image": grey(2), "label": 1}, names=["ant", "cat"])
    assert as_images(hugging).classes == ("ant", "cat")
    both = as_images({"train": hugging, "validation": hugging})
    assert both.parts == ("train", "val")
    assert both.labels.tolist() == [0, 1, 0, 1]
    mixed = as_images(Items(grey(5), np.full((4, 4, 3), 7, dtype=np.uint8)))
    assert mixed.pixels[:, :, 0, 0].tolist() == [[5, 5, 5], [7, 7, 7]]


@pytest.mark.parametrize(
    "items, message",
    [
        ((np.full((4, 4), -2.0),), r"Items\[0\]: .* must lie in \[0, 1\], .*leave normalisation out of its transform"),
        (({"picture": grey(1)},), r"Items\[0\] has the keys picture, and none is known to be the image"),
        ((("a.png", 1),), r"Items\[0\]: an image must be Pillow's, an array or a tensor, got str"),
        (((grey(1), 0), (grey(2), "a")), "labels must be integers, or all of them names"),
        (((grey(1), 0.5),), "labels must be integers, or all of them names"),
        (((),), r"Items\[0\] is empty"),
        ((), "got none: Items is empty"),
        ((grey(1), np.zeros((5, 5), dtype=np.uint8)), r"one shape, got \(1, 5, 5\) in Items\[1\]"),
    ],
)
def test_items_that_are_no_images(items, message):
    with pytest.raises(ValueError, match=message):
        as_images(Items(*items))


class Stream(IterableDataset):
    """A thousand images, shade by shade."""

    def __iter__(self):
        return ((grey(i % 250), i % 250) for i in range(1000))


def test_a_stream_fills_a_reservoir():
    images = as_images(Stream(), reservoir=400)
    assert len(images) == 400
    assert torch.equal(images.pixels[:, 0, 0, 0].long(), images.labels)
    assert 300 < torch.unique(images.labels).numel() * 2 < 500, "from all of the stream"
    assert abs(float(images.labels.float().mean()) - 124.5) < 20
    with pytest.raises(ValueError, match=r"Stream is a stream.*say how many of its images.*reservoir=10_000"):
        as_images(Stream())


# Memory and damage.


def test_many_images_are_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FROM_BYTES", 100)
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "cache"))
    folder = write_pictures(tmp_path / "set", {"a": 2, "b": 2})
    images = as_images(folder)
    assert images.mapped
    (file,) = (tmp_path / "cache").iterdir()
    written = file.stat().st_mtime_ns
    monkeypatch.setattr("fastmeta.tasks.datasets.archive.Archive.read_picture", None)
    assert as_images(folder).fingerprint() == images.fingerprint()
    assert file.stat().st_mtime_ns == written
    monkeypatch.undo()
    assert as_images(folder).fingerprint() == images.fingerprint()
    assert not as_images(folder).mapped


def test_changed_images_are_decoded_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FROM_BYTES", 100)
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "cache"))
    folder = write_pictures(tmp_path / "set", {"a": 2, "b": 2})
    before = as_images(folder).fingerprint()
    Image.new("RGB", (12, 12), (1, 2, 3)).save(folder / "a" / "001.png")
    assert as_images(folder).fingerprint() != before


def test_a_damaged_image_leaves_no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FROM_BYTES", 100)
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "cache"))
    folder = write_pictures(tmp_path / "set", {"a": 2, "b": 2})
    path = folder / "b" / "001.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"001\.png is not a readable image"):
        as_images(folder)
    assert not list((tmp_path / "cache").iterdir())


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FROM_BYTES", 100)
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "cache"))
    folder = write_pictures(tmp_path / "set", {"a": 2, "b": 2})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "ascontiguousarray", full)
    with pytest.raises(OSError, match=r"No space left on device while 0 MiB of decoded images.*FASTMETA_CACHE"):
        as_images(folder)
    assert not list((tmp_path / "cache").iterdir())


def test_a_zip_member_that_claims_gigabytes_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/0.png", bytes(5 * 2**20))
    with pytest.raises(ValueError, match=r"bomb\.zip!a/0\.png claims 5,242,880 bytes out of 5,\d+ compressed ones"):
        as_images(path)
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\1\2")
    data[directory + 20 : directory + 28] = struct.pack("<II", 2**26, 3 * 10**9)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="claims 3,000,000,000 bytes"):
        as_images(path)


@pytest.mark.parametrize(
    "name, message",
    [
        ("train.csv", "says which images there are, and holds none; name the folder"),
        ("a.png", "is a single image; name the folder"),
        ("a.tar.gz", "is an archive that is not read in place; unpack it"),
        ("a.pkl", "is no file of images that is known; give a folder or zip file"),
        ("images", "is no file of images that is known"),
    ],
)
def test_files_of_no_images(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"0")
    with pytest.raises(ValueError, match=message):
        as_images(tmp_path / name)
