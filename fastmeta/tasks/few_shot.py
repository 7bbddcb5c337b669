"""Episodes of few-shot classification, sampled on the device that holds all images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .augment import random_affine, warp
from .base import Episodes, check_count, check_generator
from .omniglot import Characters


class FewShot:
    """Each task draws `ways` classes of characters, and of each class `shots` + `queries` drawings.

    Samples are ordered shot by shot (class 0, 1, ..., then class 0, 1, ... again), so that consecutive inner
    batches of a multiple of `ways` samples are balanced. Label j is a fresh class in every task.

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
        check_count("ways", ways, minimum=2)
        check_count("shots", shots)
        check_count("queries", queries)
        for name, strength in (("augment", augment), ("augment_classes", augment_classes)):
            if not 0 <= strength <= 4:
                raise ValueError(f"{name} must lie in [0, 4] (0 is off, 1 is usual), got {strength!r}")
        _check_drawers(characters, shots, queries)
        self.ways, self.shots, self.queries = ways, shots, queries
        self.augment, self.augment_classes = augment, augment_classes
        self.device = torch.device(device)
        copies = (4 if rotations else 1) * (2 if mirrored else 1)
        # [groups, longest], the classes that a task may mix, padded with −1.
        self._groups = _groups(characters, ways, copies, within_alphabet).to(self.device)
        # uint8 [classes, drawers, 28, 28] and int64 [classes].
        self._images = _symmetries(characters.images.to(self.device), rotations, mirrored)
        self._drawers = characters.drawers.to(self.device).repeat(copies)

    @property
    def classes(self) -> int:
        """Different classes, turned and mirrored ones included."""
        return len(self._images)

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes: images float32 [tasks, N or M, 1, 28, 28] in [0, 1], labels int64."""
        check_count("tasks", tasks)
        check_generator(generator, self.device)
        classes = self._sample_classes(tasks, generator)
        drawings = self._sample_drawings(classes, generator)
        x = self._images[classes[:, None], drawings].to(torch.float32).div_(255).unsqueeze(3)
        x = self._distort(x, generator).flatten(1, 2)
        y = torch.arange(self.ways, device=self.device).repeat(self.shots + self.queries).expand(tasks, -1)
        n = self.ways * self.shots
        return Episodes(x[:, :n], y[:, :n], x[:, n:], y[:, n:])

    def _sample_classes(self, tasks: int, generator: torch.Generator) -> Tensor:
        """[tasks, ways], without replacement within a task."""
        group = torch.randint(len(self._groups), (tasks,), generator=generator, device=self.device)
        groups = self._groups[group]
        keys = torch.rand(groups.shape, generator=generator, device=self.device)
        return groups.gather(1, keys.masked_fill_(groups < 0, -1.0).topk(self.ways, dim=1).indices)

    def _sample_drawings(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """[tasks, shots + queries, ways], without replacement within a class."""
        most = self._images.shape[1]
        keys = torch.rand((*classes.shape, most), generator=generator, device=self.device)
        missing = torch.arange(most, device=self.device) >= self._drawers[classes].unsqueeze(-1)
        chosen = keys.masked_fill_(missing, -1.0).topk(self.shots + self.queries, dim=2).indices
        return chosen.transpose(1, 2)

    def _distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Of x [tasks, shots + queries, ways, 1, 28, 28]."""
        tasks, draws, ways = x.shape[:3]
        maps = torch.eye(3, device=self.device).expand(tasks, draws, ways, 3, 3)
        if self.augment_classes:
            shape = (tasks, 1, ways)
            maps = maps @ random_affine(shape, strength=self.augment_classes, generator=generator)
        if self.augment:
            shape = (tasks, draws, ways)
            maps = maps @ random_affine(shape, strength=self.augment, generator=generator)
        return warp(x, maps) if self.augment or self.augment_classes else x


def _check_drawers(characters: Characters, shots: int, queries: int) -> None:
    fewest, row = characters.drawers.min(dim=0)
    if fewest < shots + queries:
        raise ValueError(
            f"shots + queries must be at most the drawings of a character, got {shots} + {queries}, "
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
    table = pad_sequence(members, batch_first=True, padding_value=-1)
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
