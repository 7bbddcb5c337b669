"""CIFAR-100 (Krizhevsky 2009) in its binary and Python versions, divided as CIFAR-FS or FC100."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from .images import SPLITS, Images
from .plain_pickle import load_plain

_PIXELS = 3 * 32 * 32


class _Cifar(NamedTuple):
    """All images, uint8 [n, 3072], and of each its class and superclass, by name."""

    pixels: np.ndarray
    fine: list[str]
    coarse: list[str]


def load_cifar100(path: Path, division: Literal["cifar-fs", "fc100"]) -> Images:
    """The 60,000 images of both of CIFAR-100's files, in the parts of a published division of its classes.

    Args:
        path: the unpacked folder, of train.bin, test.bin and their lists of names, or of train, test and meta.
        division: CIFAR-FS (Bertinetto et al. 2019) divides classes, FC100 (Oreshkin et al. 2018) superclasses.

    Raises:
        FileNotFoundError: where the folder holds neither version; says what to fetch.
        ValueError: for a damaged file, or classes that are not CIFAR-100's.
    """
    found = _read(path, division)
    part_of = division_of(division)
    keys = found.fine if division == "cifar-fs" else found.coarse
    unknown = sorted(set(keys) - set(part_of))
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)} is no class of CIFAR-100; download it again")
    classes = tuple(sorted(set(found.fine)))
    numbers = {name: number for number, name in enumerate(classes)}
    labels, parts = torch.tensor([numbers[name] for name in found.fine]), torch.tensor([part_of[key] for key in keys])
    order = (parts * len(classes) + labels).argsort(stable=True)
    pixels = torch.from_numpy(found.pixels).view(-1, 3, 32, 32)[order]
    return Images(pixels, labels[order], division, classes, parts[order], f"the classes of {division}")


def division_of(name: str) -> dict[str, int]:
    """The index in `SPLITS` of each class or superclass that a published division names."""
    text = files("fastmeta.tasks.datasets").joinpath("splits", f"{name}.txt").read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {label: SPLITS.index(part) for part, label in rows}


def _read(path: Path, division: str) -> _Cifar:
    if all(
        (path / name).exists() for name in ("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt")
    ):
        return _binary(path)
    if all((path / name).exists() for name in ("train", "test", "meta")):
        return _python(path)
    raise FileNotFoundError(
        f"{path} holds no CIFAR-100, of which {division} is made: fetch cifar-100-python.tar.gz (161 MB) from "
        "www.cs.toronto.edu/~kriz/cifar.html, unpack it, and name its folder cifar-100-python "
        f"(--data {division}=cifar-100-python); the binary version serves as well"
    )


def _binary(path: Path) -> _Cifar:
    records = []
    for file in (path / "train.bin", path / "test.bin"):
        data = np.fromfile(file, dtype=np.uint8)
        if not len(data) or len(data) % (_PIXELS + 2):
            raise ValueError(f"{file} does not consist of whole records of {_PIXELS + 2} bytes: download it again")
        records.append(data.reshape(-1, _PIXELS + 2))
    whole = np.concatenate(records)
    fine, coarse = ((path / f"{kind}_label_names.txt").read_text().split() for kind in ("fine", "coarse"))
    return _named(path, whole[:, 2:].copy(), whole[:, 1].tolist(), whole[:, 0].tolist(), fine, coarse)


def _python(path: Path) -> _Cifar:
    try:
        parts = [load_plain(path / name) for name in ("train", "test")]
        meta = load_plain(path / "meta")
        fine, coarse = ([name.decode() for name in meta[f"{kind}_label_names".encode()]] for kind in ("fine", "coarse"))
        pixels = np.concatenate([np.asarray(part[b"data"], dtype=np.uint8).reshape(-1, _PIXELS) for part in parts])
        fine_labels, coarse_labels = (
            [int(label) for part in parts for label in part[f"{kind}_labels".encode()]] for kind in ("fine", "coarse")
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no CIFAR-100 in its Python version ({error!r}): download it again") from error
    return _named(path, pixels, fine_labels, coarse_labels, fine, coarse)


def _named(
    path: Path, pixels: np.ndarray, fine: list[int], coarse: list[int], fine_names: list[str], coarse_names: list[str]
) -> _Cifar:
    for labels, names in ((fine, fine_names), (coarse, coarse_names)):
        if len(labels) != len(pixels) or not 0 <= min(labels) <= max(labels) < len(names):
            raise ValueError(
                f"{path}: {len(labels):,} labels of {len(names)} classes do not fit {len(pixels):,} images"
            )
    return _Cifar(pixels, [fine_names[i] for i in fine], [coarse_names[i] for i in coarse])
