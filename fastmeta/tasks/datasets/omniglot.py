"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): handwritten characters of many alphabets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .archive import SIZE, Archive
from .images import Images

_MEMBER = re.compile(r"(?:^|.*/)(?P<alphabet>[^/]+)/(?P<character>character\d+)/\d+_(?P<drawer>\d+)\.png$")


@dataclass(frozen=True, repr=False)
class Characters:
    """Images of characters, grouped by alphabet.

    Attributes:
        images: uint8 [characters, drawers, 28, 28], ink is 255. Rows past a character's `drawers` are blank.
        drawers: int64 [characters], how many drawings each character has.
        alphabet: int64 [characters], index into `alphabets`, ascending.
        alphabets: names, sorted.
        names: `ALPHABET/characterNN` of each character, sorted.
    """

    images: Tensor
    drawers: Tensor
    alphabet: Tensor
    alphabets: tuple[str, ...]
    names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Characters({self.describe()})"

    def as_images(self) -> Images:
        """All drawings as plain images, each character a class."""
        count, most = self.images.shape[:2]
        drawn = torch.arange(most) < self.drawers[:, None]
        labels = torch.arange(count)[:, None].expand(-1, most)
        return Images(self.images[drawn].unsqueeze(1), labels[drawn], "Omniglot")

    def select(self, *, keep: Sequence[str] = (), drop: Sequence[str] = ()) -> Characters:
        """Only the alphabets in `keep` (all where empty), without those in `drop`.

        Raises:
            ValueError: for a name that is no alphabet here, or where nothing is left.
        """
        unknown = sorted({*keep, *drop} - set(self.alphabets))
        if unknown:
            here = ", ".join(self.alphabets)
            raise ValueError(f"no alphabet is named {', '.join(unknown)}; the data holds {here}")
        chosen = tuple(name for name in self.alphabets if (not keep or name in keep) and name not in drop)
        if not chosen:
            raise ValueError(
                f"no alphabet is left: keep {', '.join(keep) or 'all'}, leave out {', '.join(drop)} "
                f"of {', '.join(self.alphabets)}"
            )
        old = torch.tensor([self.alphabets.index(name) for name in chosen])
        rows = torch.isin(self.alphabet, old).nonzero().squeeze(1)
        return Characters(
            self.images[rows],
            self.drawers[rows],
            torch.searchsorted(old, self.alphabet[rows]),
            chosen,
            tuple(self.names[i] for i in rows.tolist()),
        )

    def sizes(self) -> dict[str, int]:
        """How many characters each alphabet has."""
        counts = torch.bincount(self.alphabet, minlength=len(self.alphabets)).tolist()
        return dict(zip(self.alphabets, counts, strict=True))

    def fingerprint(self) -> str:
        """A digest of names and pixels: two sets with the same one give the same episodes."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(self.images.numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """For a person: how many characters of which alphabets."""
        parts = ", ".join(f"{name} {size}" for name, size in self.sizes().items())
        return f"{len(self.names)} characters of {len(self.alphabets)} alphabets ({parts})"


def load_omniglot(paths: Iterable[str | Path]) -> Characters:
    """Read the distribution's zip files or unpacked folders.

    Files are recognised by the last three parts of their name, `ALPHABET/characterNN/IIII_DD.png` (DD is the
    drawer), so `images_background.zip`, the folder it unpacks to and that folder's parent all serve. A
    drawing that occurs in several of them (small1 and small2 share Greek and Latin) counts once.

    Args:
        paths: one or several zip files or folders.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a damaged file, a path without such images, or no path at all.
        RuntimeError: without Pillow (`pip install "fastmeta[train]"`).
    """
    drawings: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    if isinstance(paths, str | Path):
        paths = (paths,)
    paths = tuple(Path(path) for path in paths)
    if not paths:
        raise ValueError("data must name at least one zip file or folder of Omniglot, got none")
    for path in paths:
        with Archive(path) as archive:
            _read_drawings(archive, drawings)
    return _stack(drawings)


def holds_omniglot(path: Path) -> bool:
    """Whether a zip file or folder holds images that are named as Omniglot's are."""
    with Archive(path) as archive:
        return any(_MEMBER.fullmatch(name) for name in archive.names() if "__MACOSX" not in name)


def _read_drawings(archive: Archive, drawings: dict[tuple[str, str], dict[str, np.ndarray]]) -> None:
    found = False
    for name in archive.names():
        match = _MEMBER.fullmatch(name)
        if match is None or "__MACOSX" in name:
            continue
        found = True
        of_character = drawings.setdefault((match["alphabet"], match["character"]), {})
        if match["drawer"] not in of_character:
            of_character[match["drawer"]] = archive.read_image(name)
    if not found:
        zips = [name for name in archive.names() if name.endswith(".zip")]
        hint = f"; it holds {', '.join(zips)}: name those files instead" if zips else ""
        raise ValueError(
            f"{archive.path} holds no image named ALPHABET/characterNN/IIII_DD.png, as Omniglot's "
            f"images_background.zip does{hint}"
        )


def _stack(drawings: dict[tuple[str, str], dict[str, np.ndarray]]) -> Characters:
    keys = sorted(drawings)
    alphabets = tuple(sorted({alphabet for alphabet, _ in keys}))
    drawers = [len(drawings[key]) for key in keys]
    images = np.zeros((len(keys), max(drawers), SIZE, SIZE), dtype=np.uint8)
    for row, key in enumerate(keys):
        for column, drawer in enumerate(sorted(drawings[key])):
            images[row, column] = drawings[key][drawer]
    return Characters(
        torch.from_numpy(images),
        torch.tensor(drawers),
        torch.tensor([alphabets.index(alphabet) for alphabet, _ in keys]),
        alphabets,
        tuple("/".join(key) for key in keys),
    )
