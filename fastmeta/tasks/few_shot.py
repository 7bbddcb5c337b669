"""Few-shot classification of Omniglot's characters, sampled on the device that holds all images."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Shots
from .class_episodes import ClassEpisodes
from .datasets.class_table import ClassTable, pad
from .datasets.omniglot import Characters


class FewShot(ClassEpisodes):
    """Few-shot classification of characters: `ClassEpisodes` whose classes are characters.

    Args:
        characters: the images; they are copied to `device` once.
        ways: classes C of a task.
        shots: support images per class (N = ways · shots).
        queries: query images per class (M = ways · queries).
        within_alphabet: all classes of a task from one alphabet, drawn uniformly among the alphabets.
        rotations: every character turned by 90, 180 and 270 degrees makes three more classes (Santoro et al.
            2016). With `within_alphabet`, a turned alphabet is an alphabet of its own.
        mirrored: likewise, every character's mirror image makes one more class.
        augment: strength of a random affine distortion of every image (`random_affine`); for training.
        augment_classes: strength of one that all images of a class in a task share: it makes new classes.
        device: where images lie and episodes are sampled.

    Raises:
        ValueError: where characters, an alphabet's characters or a character's drawings are too few.
    """

    def __init__(
        self,
        characters: Characters,
        *,
        ways: int,
        shots: int,
        queries: int,
        within_alphabet: bool = False,
        rotations: bool = False,
        mirrored: bool = False,
        augment: float = 0.0,
        augment_classes: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_drawers(characters, Shots(ways, shots, queries))
        super().__init__(
            character_table(
                characters,
                ways=ways,
                within_alphabet=within_alphabet,
                rotations=rotations,
                mirrored=mirrored,
                device=device,
            ),
            ways=ways,
            shots=shots,
            queries=queries,
            augment=augment,
            augment_classes=augment_classes,
            device=device,
        )


def character_table(
    characters: Characters, *, ways: int, within_alphabet: bool = False, rotations: bool = False,
    mirrored: bool = False, device: torch.device | str = "cpu",
) -> ClassTable:  # fmt: skip
    """Characters as classes; the arguments are those of `FewShot`.

    Raises:
        ValueError: where characters, or those of an alphabet, are fewer than `ways`.
    """
    copies = (4 if rotations else 1) * (2 if mirrored else 1)
    return ClassTable(
        _symmetries(characters.images.to(device), rotations, mirrored).flatten(0, 1).unsqueeze(1),
        _members(characters, copies),
        _groups(characters, ways, copies, within_alphabet),
    )


def _members(characters: Characters, copies: int) -> Tensor:
    """[characters · copies, drawers]: row c · drawers + d of the flattened images is drawing d of class c."""
    count, most = characters.images.shape[:2]
    rows = torch.arange(count * copies * most).view(count * copies, most)
    return torch.where(torch.arange(most) < characters.drawers.repeat(copies)[:, None], rows, -1)


def _check_drawers(characters: Characters, counts: Shots) -> None:
    fewest, row = characters.drawers.min(dim=0)
    if fewest < counts.draws:
        raise ValueError(
            f"shots + queries must be at most the drawings of a character, got {counts.shots} + {counts.queries}, "
            f"but {characters.names[int(row)]} has {int(fewest)}; ask for fewer shots or queries"
        )


def _groups(characters: Characters, ways: int, copies: int, within_alphabet: bool) -> Tensor:
    """[groups, longest], padded with −1. Copy j of character i is class j · characters + i."""
    count = len(characters.names)
    if not within_alphabet:
        if ways > count * copies:
            raise ValueError(
                f"ways must be at most the number of classes, got {ways} of {count * copies} "
                f"({characters.describe()}); ask for fewer ways or give more data"
            )
        return torch.arange(count * copies)[None]
    _check_alphabets(characters, ways)
    members = [(characters.alphabet == index).nonzero().squeeze(1) for index in range(len(characters.alphabets))]
    table = pad(members)
    shifts = (torch.arange(copies) * count)[:, None, None]
    return torch.where(table >= 0, table + shifts, -1).flatten(0, 1)


def _check_alphabets(characters: Characters, ways: int) -> None:
    sizes = characters.sizes()
    small = {name: size for name, size in sizes.items() if size < ways}
    if small:
        enough = ", ".join(f"{name} ({size})" for name, size in sizes.items() if size >= ways) or "none"
        too_few = ", ".join(f"{name} ({size})" for name, size in small.items())
        raise ValueError(
            f"{ways} ways within an alphabet need {ways} characters in each: too few in {too_few}; "
            f"enough in {enough}. Leave out the small ones (--exclude-alphabets {' '.join(small)}) "
            f"or ask for fewer ways"
        )


def _symmetries(images: Tensor, rotations: bool, mirrored: bool) -> Tensor:
    if rotations:
        images = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
    return torch.cat([images, images.flip(3)]) if mirrored else images
