"""Series: groups of multivariate sequences, from arrays, files, pen strokes, or drawn at random."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmeta.tasks.base import check_count, split_count

from .archive import Archive

_STROKES = re.compile(r"(?:^|.*/)(?P<alphabet>[^/]+)/(?P<character>character\d+)/\d+_(?P<drawer>\d+)\.txt$")


@dataclass(frozen=True, repr=False)
class Series:
    """Series of several lengths, each of one group.

    Attributes:
        values: float32 [steps, features], all series one behind the other.
        lengths: int64 [series].
        group: int64 [series]: series of a group make the tasks of that group.
        names: of the groups.
        title: where they come from, for a person.
    """

    values: Tensor
    lengths: Tensor
    group: Tensor
    names: tuple[str, ...]
    title: str = "series"

    def __repr__(self) -> str:
        return f"Series({self.describe()})"

    @property
    def features(self) -> int:
        """Numbers a step."""
        return self.values.shape[1]

    def select(self, groups: Sequence[int]) -> Series:
        """Only these groups."""
        old = torch.as_tensor(list(groups))
        kept = torch.isin(self.group, old)
        new = torch.full((len(self.names),), -1)
        new[old] = torch.arange(len(old))
        return Series(
            self.values[kept.repeat_interleave(self.lengths)],
            self.lengths[kept],
            new[self.group[kept]],
            tuple(self.names[i] for i in old.tolist()),
            self.title,
        )

    def split(self, held_out: float) -> tuple[Series, Series]:
        """The first groups, and the last share `held_out` of them (at least one): groups to learn from, and new ones.

        Raises:
            ValueError: fewer than two groups.
        """
        count = len(self.names)
        if count < 2:
            raise ValueError(
                f"{self.title} has {count} group(s); at least two are needed to hold one out for evaluation"
            )
        first = split_count(count, held_out)
        return self.select(range(first)), self.select(range(first, count))

    def fingerprint(self) -> str:
        """A digest of values and groups."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        for part in (self.values, self.lengths, self.group):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """For a person: how many series of how many groups."""
        return (
            f"{self.title}: {len(self.lengths):,} series of {len(self.names):,} groups, {len(self.values):,} steps of "
            f"{self.features} number(s)"
        )


def draw_waves(groups: int = 200, *, steps: int = 120, seed: int = 0) -> Series:
    """Sums of two sinusoids, each group with amplitudes, periods and phases of its own: series without any data.

    Args:
        groups: how many different waves.
        steps: length of each.
        seed: the same one gives the same waves.
    """
    check_count("groups", groups)
    check_count("steps", steps, minimum=2)
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(groups, 3, 2, 1, generator=generator)
    period = 4 * 6.0 ** u[:, 1]  # 4 to 24 steps
    time = torch.arange(float(steps))
    values = ((0.2 + u[:, 0]) * torch.sin(2 * math.pi * (time / period + u[:, 2]))).sum(1)
    names = tuple(f"wave {i}" for i in range(groups))
    return Series(values.reshape(-1, 1), torch.full((groups,), steps), torch.arange(groups), names, "random waves")


def as_series(
    arrays: Iterable[np.ndarray | Tensor], *, group: Sequence[int] | None = None, title: str = "series"
) -> Series:
    """Make series of arrays [steps] or [steps, features].

    Args:
        arrays: the series.
        group: of each, numbered from 0; None makes each a group of its own.
        title: for a person.

    Raises:
        ValueError: no array, arrays that differ in features, or values that are not finite.
    """
    parts = [torch.as_tensor(np.asarray(array), dtype=torch.float32) for array in arrays]
    parts = [part.unsqueeze(1) if part.dim() == 1 else part for part in parts]
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"series must all be [steps] or [steps, features] with as many features, got {sorted(shapes)}")
    values = torch.cat(parts)
    if not values.isfinite().all():
        raise ValueError(f"{title} holds NaN or infinity; leave those steps out")
    groups = torch.arange(len(parts)) if group is None else torch.as_tensor(list(group))
    names = tuple(f"{title} {i}" for i in range(int(groups.max()) + 1))
    return Series(values, torch.tensor([len(part) for part in parts]), groups, names, title)


def load_series(paths: Iterable[str | Path], *, group: str = "character") -> Series:
    """Read Omniglot's pen strokes, or .csv and .npy files of numbers.

    Omniglot's `strokes_background.zip` and the folder it unpacks to hold `ALPHABET/characterNN/IIII_DD.txt`, DD the
    drawer, of lines `x,y,t` between START and BREAK: each stroke is a series, the pen's position every 1/30 s.
    Any other folder or file: each .csv (a line a step) or .npy is one series and one group.

    Args:
        paths: one or several zip files, folders or files.
        group: of pen strokes: what makes a task, "character" or "writer".

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a damaged file, a path without series, or files that differ in columns.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ValueError("data must name at least one file or folder of series, got none")
    arrays: list[np.ndarray] = []
    names: list[str] = []
    for path in paths:
        if path.suffix in {".csv", ".npy"}:
            names.append(path.stem)
            arrays.append(_read_array(path.name, path.read_bytes()))
            continue
        with Archive(path) as archive:
            _read_archive(archive, group, arrays, names)
    groups = sorted(set(names))
    found = as_series(arrays, group=[groups.index(name) for name in names], title=", ".join(p.name for p in paths))
    return Series(found.values, found.lengths, found.group, tuple(groups), found.title)


def _read_archive(archive: Archive, group: str, arrays: list[np.ndarray], names: list[str]) -> None:
    before = len(arrays)
    for name in archive.names():
        if "__MACOSX" in name:
            continue
        match = _STROKES.fullmatch(name)
        if match is not None:
            strokes = _pen_strokes(archive.read(name), archive.label(name))
            arrays += strokes
            of = match["drawer"] if group == "writer" else f"{match['alphabet']}/{match['character']}"
            names += [of] * len(strokes)
        elif name.endswith((".csv", ".npy")):
            arrays.append(_read_array(archive.label(name), archive.read(name)))
            names.append(name)
    if len(arrays) == before:
        raise ValueError(
            f"{archive.path} holds no series: neither .csv nor .npy files, nor ALPHABET/characterNN/IIII_DD.txt as "
            "Omniglot's strokes_background.zip does"
        )


def _read_array(label: str, data: bytes) -> np.ndarray:
    try:
        if label.endswith(".npy"):
            return np.load(io.BytesIO(data), allow_pickle=False)
        text = data.decode().splitlines()
        header = bool(text) and not re.match(r"\s*[-+.\d]", text[0])
        return np.loadtxt(text[header:], delimiter=",", ndmin=2)
    except (ValueError, UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"{label} is no table of numbers ({error})") from error


def _pen_strokes(data: bytes, label: str) -> list[np.ndarray]:
    """The positions [steps, 2] of each stroke, every 1/30 s."""
    strokes: list[list[list[float]]] = [[]]
    for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
        if line.strip() in {"START", ""}:
            continue
        if line.strip() == "BREAK":
            strokes.append([])
            continue
        try:
            x, y, t = map(float, line.split(","))
        except ValueError:
            raise ValueError(f"{label}, line {number}: expected 'x,y,t', START or BREAK, got {line!r}") from None
        strokes[-1].append([x, y, t])
    parts = [_every(np.asarray(stroke), 1000 / 30) for stroke in strokes if stroke]
    if not parts:
        raise ValueError(f"{label} holds no stroke; it is damaged: download it again")
    return parts


def _every(stroke: np.ndarray, milliseconds: float) -> np.ndarray:
    """Positions of a stroke [points, 3] at equal distances in time, by linear interpolation."""
    time = stroke[:, 2]
    at = np.arange(time[0], time[-1] + 1e-9, milliseconds)
    return np.stack([np.interp(at, time, stroke[:, i]) for i in range(2)], 1)
