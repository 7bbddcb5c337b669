"""Images whose pixels tell who they are, and small stand-ins for files of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastmeta.tasks import Images


def numbered(count: int, *, channels: int = 1, size: int = 28, labels: bool = False) -> Images:
    """Image i is uniformly of brightness i + 1."""
    pixels = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, channels, size, size)
    return Images(pixels.clone(), torch.arange(count) // 5 if labels else None)


def coordinates(count: int, *, size: int = 32) -> Images:
    """Red is the row, green the column, blue the image's number: each times 4."""
    grid = torch.arange(size, dtype=torch.uint8) * 4
    pixels = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    pixels[:, 0], pixels[:, 1] = grid[:, None], grid
    pixels[:, 2] = torch.arange(count, dtype=torch.uint8)[:, None, None] * 4
    return Images(pixels, None)


def numbers(x: torch.Tensor) -> torch.Tensor:
    """Which of the `numbered` images each of x [..., C, H, W] is, or comes from."""
    return (x.flatten(-3).amax(-1) * 255).round().long() - 1


def write_pictures(folder: Path, classes: dict[str, int], *, size: int = 12, mode: str = "RGB") -> Path:
    """`folder/CLASS/i.png`, random."""
    draw = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shape = (size, size, 3) if mode == "RGB" else (size, size)
            picture = Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8), mode=None)
            picture.save(folder / name / f"{i:03}.png")
    return folder


def write_cifar(path: Path, count: int, *, classes: int = 10) -> Path:
    """Records of CIFAR-10's binary layout; pixel bytes hold the record's number, plane by plane a third more."""
    records = np.zeros((count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % classes
    records[:, 1:] = (np.arange(count)[:, None] + np.repeat([0, 100, 200], 1024)) % 256
    path.write_bytes(records.tobytes())
    return path


def write_divided(folder: Path, *, size: int = 20) -> Path:
    """miniImageNet's layout: three images of each of six classes in one folder, divided by csv files 2, 2, 2."""
    (folder / "images").mkdir(parents=True)
    classes = iter(f"n0{i}" for i in range(6))
    for part, count in (("train", 2), ("val", 2), ("test", 2)):
        rows = ["filename,label"]
        for _ in range(count):
            name = next(classes)
            for i in range(3):
                picture = np.full((size, size, 3), 40 * int(name[2:]) + i, dtype=np.uint8)
                Image.fromarray(picture).save(folder / "images" / f"{name}{i:08}.png")
                rows.append(f"{name}{i:08}.png,{name}")
        (folder / f"{part}.csv").write_text("\n".join(rows) + "\n")
    return folder
