"""Arrays of images in .npy and .npz files, and in MNIST's IDX files."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from . import cache
from .images import SPLITS, Images, joined, of_array
from .pictures import numbered

_IDX = "-idx"
_UNREADABLE = (ValueError, EOFError, OSError, KeyError, zlib.error, zipfile.BadZipFile)
_LABELS, _IMAGES = ("labels", "label", "y", "targets"), ("images", "image", "x", "data")


def load_npy(path: Path) -> Images:
    """Images of a .npy file, see `of_array`; a uint8 array stays in the file, and what is read of it is in memory.

    A file `NAME-labels.npy` beside it, [n], has their classes: integers or names.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a file that is no array of images, or labels that do not fit.
    """
    array = cache.mapped(path)
    try:
        images = of_array(array, mapped=True)
    except ValueError as error:
        raise ValueError(f"{path} is no array of images ({error})") from error
    images = replace(images, title=path.name, mapped=array.dtype == torch.uint8)
    beside = path.with_name(f"{path.stem}-labels.npy")
    return _with_labels(images, _loaded(beside), beside) if beside.exists() else images


def load_npz(path: Path) -> Images:
    """Images of a .npz file: arrays `images` (or x, data) and `labels` (or y, targets).

    Arrays with train_, val_ and test_ in front of the name (or x_train, y_train) divide them.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a damaged file, or one without such arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.lower(): file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"{path} is no .npz file of arrays ({error}); save it by numpy.savez") from error
    parts = []
    for number, part in enumerate(SPLITS):
        images = _part(arrays, part, path)
        if images is not None:
            parts.append(replace(images, part=torch.full((len(images),), number)))
    if parts:
        return joined(parts, divided_by="the arrays' names", title=path.name)
    images = _part(arrays, "", path)
    if images is None:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'no array'}, and no array of images is known by these names: call it "
            "images (and its classes labels), or train_images, val_images, test_images"
        )
    return images


def _part(arrays: Mapping[str, np.ndarray], part: str, path: Path) -> Images | None:
    def find(names: tuple[str, ...]) -> np.ndarray | None:
        for name in names:
            for key in (f"{part}_{name}", f"{name}_{part}") if part else (name,):
                if key in arrays:
                    return arrays[key]
        return None

    pixels, labels = find(_IMAGES), find(_LABELS)
    if pixels is None:
        return None
    images = replace(of_array(pixels), title=path.name)
    return images if labels is None else _with_labels(images, labels, path)


def _loaded(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise ValueError(f"{path} is no array of labels ({error})") from error


def _with_labels(images: Images, labels: np.ndarray, path: Path) -> Images:
    labels = np.asarray(labels)
    if labels.ndim == 2 and 1 in labels.shape:
        labels = labels.reshape(-1)
    if labels.shape != (len(images),):
        raise ValueError(f"{path}: labels must be [{len(images)}], one an image, got {list(labels.shape)}")
    if labels.dtype.kind not in "iuUS":
        raise ValueError(f"{path}: labels must be integers or names, got {labels.dtype}")
    if labels.dtype.kind in "US":
        numbers, classes = numbered([str(label) for label in labels.astype(str).tolist()])
        return replace(images, labels=numbers, classes=classes)
    return replace(images, labels=torch.from_numpy(labels.astype(np.int64)))


def holds_idx(path: Path) -> bool:
    """Whether a path is one of MNIST's files of images, or a folder that holds some."""
    return bool(_idx_files(path))


def _idx_files(path: Path) -> list[Path]:
    files = sorted(path.glob(f"*{_IDX}3-ubyte*")) if path.is_dir() else [path]
    files = [file for file in files if f"{_IDX}3" in file.name.replace(".idx3", "-idx3") and "images" in file.name]
    plain = {file.name for file in files}
    return [file for file in files if not (file.suffix == ".gz" and file.stem in plain)]  # unpacked beside the archive


def load_idx(path: Path) -> Images:
    """MNIST's files and those of its kin (Fashion-MNIST, KMNIST, EMNIST): one file of images, or all of a folder.

    Labels are of the file beside it whose name has labels and idx1 for images and idx3. A folder's train- and t10k-
    (or test-) files are its parts, which share their classes.

    Raises:
        ValueError: for a damaged file, or files that do not fit each other.
    """
    parts = []
    for file in _idx_files(path):
        pixels = _read_idx(file, dimensions=3)
        images = replace(of_array(pixels), title=path.name)
        beside = [file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1"))]
        beside += [beside[0].with_name(beside[0].name + ".gz"), beside[0].with_suffix("")]
        found = next((one for one in beside if one.exists() and "idx1" in one.name), None)
        if found is not None:
            images = _with_labels(images, _read_idx(found, dimensions=1), found)
        name = file.name.lower()
        test = "t10k" in name or "test" in name
        parts.append(replace(images, part=torch.full((len(images),), 2 if test else 0)))
    whole = joined(parts, shared_classes=True, divided_by="the files' names", title=path.name)
    return whole if len(whole.parts) > 1 else replace(whole, part=None, divided_by="")


def _read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read ({error}); it is damaged or truncated: download it again") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:2] != b"\0\0" or data[2] != 8 or data[3] != dimensions:
        raise ValueError(
            f"{path} is no IDX file of {dimensions} dimensions of bytes: it begins with {data[:4].hex(' ')}, not "
            f"00 00 08 {dimensions:02x}; download it again"
        )
    shape = np.frombuffer(data, ">u4", dimensions, 4).astype(int).tolist()
    if len(data) - header != np.prod(shape, dtype=object):
        raise ValueError(
            f"{path} says that it holds {shape}, and has {len(data) - header:,} bytes of them; it is truncated or "
            "damaged: download it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()
