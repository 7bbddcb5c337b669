"""Every kind of files that images are read from: a new one is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .arrays import holds_idx, load_idx, load_npy, load_npz
from .cifar import holds_cifar10, load_cifar10_images
from .cifar100 import load_cifar100
from .images import Images, joined
from .omniglot import holds_omniglot, load_omniglot
from .pictures import SUFFIXES, load_pictures


class Source(NamedTuple):
    """Files of one kind.

    Attributes:
        holds: whether a path is, or holds, such files.
        read: all such paths of a run together: what they share, such as the numbers of classes, is known here alone.
    """

    holds: Callable[[Path], bool]
    read: Callable[[Sequence[Path], int | None], Images]


def _each(read: Callable[[Path], Images]) -> Callable[[Sequence[Path], int | None], Images]:
    """Paths whose classes are their own."""
    return lambda paths, size: joined([read(path) for path in paths], size)


SOURCES: dict[str, Source] = {
    "CIFAR-10": Source(holds_cifar10, load_cifar10_images),
    ".npy": Source(lambda path: path.suffix == ".npy", _each(load_npy)),
    ".npz": Source(lambda path: path.suffix == ".npz", _each(load_npz)),
    "IDX": Source(holds_idx, _each(load_idx)),
    "Omniglot": Source(holds_omniglot, lambda paths, _: load_omniglot(paths).as_images()),
    "pictures": Source(lambda _: True, lambda paths, size: joined([load_pictures(path, size) for path in paths], size)),
}
"""By a name for a person: the first that holds a path reads it."""

NAMED: dict[str, Callable[[Path], Images]] = {
    "cifar-fs": lambda path: load_cifar100(path, "cifar-fs"),
    "fc100": lambda path: load_cifar100(path, "fc100"),
}
"""Published data sets that share their files with others, and are asked for as NAME=FOLDER."""

_KNOWN = (
    "a folder or zip file of images (a class a folder), Omniglot's, CIFAR-10's .bin files, IDX files, or a .npy or "
    ".npz file of arrays"
)


def source_of(path: Path) -> str:
    """The name in `SOURCES` of what reads a path.

    Raises:
        FileNotFoundError: where nothing lies there.
        ValueError: for a file that nothing reads.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give {_KNOWN}")
    suffix = path.suffix.lower()
    if path.is_file() and suffix in {".csv", ".txt"}:
        raise ValueError(
            f"{path} says which images there are, and holds none; name the folder that holds the images, with this "
            "file in it"
        )
    if path.is_file() and suffix in SUFFIXES:
        raise ValueError(f"{path} is a single image; name the folder that holds the images")
    if path.is_file() and suffix in {".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2"} and not holds_idx(path):
        raise ValueError(f"{path} is an archive that is not read in place; unpack it, and name the folder")
    if path.is_file() and suffix not in {".bin", ".npy", ".npz", ".zip"} and not holds_idx(path):
        raise ValueError(f"{path} is no file of images that is known; give {_KNOWN}")
    return next(name for name, source in SOURCES.items() if source.holds(path))
