"""Published splits of Omniglot's characters into those to train, to validate and to test on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from .datasets.omniglot import Characters

SPLITS = ("finn", "alphabets")
_FOLDER = Path(__file__).with_name("splits")


class Parts(NamedTuple):
    """Characters by what they are for; `validation` is None where the split has none."""

    train: Characters
    validation: Characters | None
    test: Characters


def split_omniglot(characters: Characters, name: str) -> Parts:
    """Split all of Omniglot as a paper does; the lists are the files of `fastmeta/tasks/splits`.

    Args:
        characters: of `images_background.zip` and `images_evaluation.zip` together.
        name: "finn": 1,100 random characters, 100 to validate on, 423 to test on, as Finn et al. (2017); "alphabets":
            the 30 background alphabets, none, and the 20 evaluation alphabets (Lake et al. 2015).

    Raises:
        ValueError: another name, or characters other than all of Omniglot's.
    """
    if name not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
    lines = [line.split() for line in _lines(_FOLDER / f"omniglot_{name}.txt")]
    if len(characters.names) != 1623:
        raise ValueError(
            f"split {name} is of all 1,623 characters of Omniglot, got {len(characters.names):,}; give "
            "images_background.zip and images_evaluation.zip together"
        )
    if name == "alphabets":
        test = {alphabet for (alphabet,) in lines}
        chosen = {n for n in characters.names if n.split("/")[0] in test}
        _check_found(characters, test, {n.split("/")[0] for n in characters.names})
        return Parts(_only(characters, set(characters.names) - chosen), None, _only(characters, chosen))
    parts = {
        part: {f"{a}/character{number}" for a, kind, *numbers in lines if kind == part for number in numbers}
        for part in ("val", "test")
    }
    _check_found(characters, parts["val"] | parts["test"], set(characters.names))
    train = set(characters.names) - parts["val"] - parts["test"]
    return Parts(_only(characters, train), _only(characters, parts["val"]), _only(characters, parts["test"]))


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def _check_found(characters: Characters, wanted: Iterable[str], known: set[str]) -> None:
    missing = sorted(set(wanted) - known)
    if missing:
        raise ValueError(
            f"the data lack {len(missing)} names of the split, such as {missing[0]}; their names must be those of "
            f"Omniglot's distribution, got such as {characters.names[0]}"
        )


def _only(characters: Characters, names: set[str]) -> Characters:
    """The characters of these names."""
    rows = torch.tensor([i for i, name in enumerate(characters.names) if name in names])
    old = characters.alphabet[rows].unique()
    return Characters(
        characters.images[rows],
        characters.drawers[rows],
        torch.searchsorted(old, characters.alphabet[rows]),
        tuple(characters.alphabets[i] for i in old.tolist()),
        tuple(characters.names[i] for i in rows.tolist()),
    )
