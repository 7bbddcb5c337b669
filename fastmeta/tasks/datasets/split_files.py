"""Which image is of which class and part: train, validation and test folders, and the files that divide a folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from .archive import Archive
from .images import SPLITS

_PARTS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
"""Names of files and folders, and the index in `SPLITS` that they stand for."""


@dataclass(frozen=True)
class Division:
    """Pictures in parts.

    Attributes:
        names: of the pictures, part by part and class by class.
        labels: class of each; empty where there are no classes.
        parts: index in `SPLITS` of each.
        source: what says so, for a person.
    """

    names: list[str]
    labels: list[str]
    parts: list[int]
    source: str


def find_division(archive: Archive, pictures: Sequence[str]) -> Division | None:
    """How the files or folders of an archive divide its pictures; None where nothing does.

    Found are `train`, `val` (`valid`, `validation`) and `test`, as .csv files with a row of an image and its label
    (miniImageNet's), as .txt files with a class a line (CIFAR-FS's), and as folders.

    Raises:
        ValueError: for files that name images or classes twice, or such as are not there, or leave classes out.
    """
    for suffix, read in ((".csv", _by_rows), (".txt", _by_classes)):
        files = _split_files(archive, suffix)
        if files:
            return _ordered(*read(archive, files, pictures), _source(files.values()))
    return _by_folders(pictures)


def _split_files(archive: Archive, suffix: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for name in archive.names():
        path = PurePosixPath(name)
        part = _PARTS.get(path.stem.lower())
        if path.suffix.lower() != suffix or part is None or "__MACOSX" in name:
            continue
        if part in found:
            raise ValueError(
                f"{archive.path} holds two files for the {SPLITS[part]} part, {found[part]} and {name}; keep those of "
                "one division and move the others out of the folder"
            )
        found[part] = name
    found = dict(sorted(found.items()))
    return found if 0 in found and len(found) > 1 else {}


def _source(files: Iterable[str]) -> str:
    return ", ".join(PurePosixPath(name).name for name in files)


def _text(archive: Archive, name: str) -> str:
    try:
        return archive.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{archive.label(name)} is no text in UTF-8 ({error}); save it as such") from error


def _by_rows(
    archive: Archive, files: dict[int, str], pictures: Sequence[str]
) -> tuple[list[str], list[str], list[int]]:
    """.csv files with rows of a file name and a label."""
    places: dict[str, str | None] = {}
    for name in pictures:
        base = PurePosixPath(name).name
        places[base] = None if base in places else name  # None: of several folders, to be named with its folder
    full = {name: name for name in pictures}
    seen: dict[str, str] = {}
    rows: tuple[list[str], list[str], list[int]] = ([], [], [])
    for part, file in sorted(files.items()):
        absent: list[str] = []
        for image, label in _pairs(archive, file):
            name = full.get(image) or places.get(PurePosixPath(image).name)
            if name is None:
                absent.append(image)
                continue
            if name in seen:
                raise ValueError(
                    f"{archive.label(file)} names {image}, which {seen[name]} names too; an image belongs to one part, "
                    "once: remove a line"
                )
            seen[name] = PurePosixPath(file).name
            rows[0].append(name)
            rows[1].append(label)
            rows[2].append(part)
        if absent:
            raise ValueError(
                f"{archive.label(file)} names {len(absent):,} images that are not there, or that lie in several "
                f"folders, such as {absent[0]}; unpack the images beside the file (usually as images/)"
            )
    return rows


def _pairs(archive: Archive, file: str) -> list[tuple[str, str]]:
    table = [row for row in csv.reader(io.StringIO(_text(archive, file))) if row]
    if not table or any(len(row) < 2 for row in table):
        raise ValueError(
            f"{archive.label(file)} must hold rows of an image and its label, under the line filename,label"
        )
    if "." not in table[0][0]:
        table = table[1:]  # the names of the columns
    return [(row[0].strip(), row[1].strip()) for row in table]


def _by_classes(
    archive: Archive, files: dict[int, str], pictures: Sequence[str]
) -> tuple[list[str], list[str], list[int]]:
    """.txt files with the names of classes, which are the folders that pictures lie in."""
    part_of: dict[str, int] = {}
    for part, file in sorted(files.items()):
        for line in filter(None, map(str.strip, _text(archive, file).splitlines())):
            if line in part_of:
                where = files[part_of[line]]
                raise ValueError(
                    f"{archive.label(file)} names class {line}, which {where} names before; a class belongs to one "
                    "part, once: remove a line"
                )
            part_of[line] = part
    folders = sorted({str(PurePosixPath(name).parent) for name in pictures})
    class_of = {folder: PurePosixPath(folder).name for folder in folders}
    here = list(class_of.values())
    double = next((name for name in here if here.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"{archive.path} holds two folders of class {double}; rename one, or put them together")
    for wrong, what, remedy in (
        (sorted(set(part_of) - set(here)), "that no folder holds images of", "unpack them, or remove their lines"),
        (sorted(set(here) - set(part_of)), "that no split file names", "add them to one file, or remove their folders"),
    ):
        if wrong:
            raise ValueError(
                f"{archive.path}: {_source(files.values())} and the folders do not fit: {len(wrong)} classes "
                f"{what}, such as {wrong[0]}; {remedy}"
            )
    labels = [class_of[str(PurePosixPath(name).parent)] for name in pictures]
    return list(pictures), labels, [part_of[label] for label in labels]


def _by_folders(pictures: Sequence[str]) -> Division | None:
    """Folders train, val and test, with a folder a class in each."""
    paths = [PurePosixPath(name).parts[:-1] for name in pictures]
    depth = 0  # of what all pictures have in common
    while all(len(path) > depth for path in paths) and len({path[: depth + 1] for path in paths}) == 1:
        depth += 1
    tops = {path[depth] if len(path) > depth else "" for path in paths}
    if not all(top.lower() in _PARTS for top in tops) or "train" not in map(str.lower, tops) or len(tops) < 2:
        return None
    labels = ["/".join(path[depth + 1 :]) for path in paths]
    if any(not label for label in labels):
        labels = []  # pictures without classes
    parts = [_PARTS[path[depth].lower()] for path in paths]
    return _ordered(
        list(pictures), labels, parts, "the folders " + ", ".join(sorted(tops, key=lambda t: _PARTS[t.lower()]))
    )


def _ordered(names: list[str], labels: list[str], parts: list[int], source: str) -> Division:
    """Part by part and class by class: what is read together lies together."""
    keys = labels or [""] * len(names)
    order = sorted(range(len(names)), key=lambda i: (parts[i], keys[i], names[i]))
    return Division(
        [names[i] for i in order], [labels[i] for i in order] if labels else [], [parts[i] for i in order], source
    )
