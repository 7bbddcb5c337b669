"""Small stand-ins for Omniglot's files, in the distribution's layout: 105 × 105, 1 bit, ink is 0."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def png(seed: int, size: int = 105) -> bytes:
    """A random blocky drawing; the same seed gives the same bytes."""
    blocks = np.random.default_rng(seed).random((15, 15)) > 0.3
    paper = np.kron(blocks, np.ones((size // 15, size // 15))).astype(bool)
    buffer = io.BytesIO()
    Image.fromarray(paper).save(buffer, format="PNG")
    return buffer.getvalue()


def background(
    alphabets: Mapping[str, int], *, drawers: int = 5, root: str = "images_background", size: int = 105
) -> dict[str, bytes]:
    """Members of an `images_background.zip`: {alphabet: characters}. Pixels depend on the name alone."""
    files = {}
    for alphabet, characters in alphabets.items():
        for character in range(1, characters + 1):
            for drawer in range(1, drawers + 1):
                seed = int.from_bytes(f"{alphabet}{character:02}{drawer:02}".encode())
                name = f"{root}/{alphabet}/character{character:02}/{character + 300:04}_{drawer:02}.png"
                files[name] = png(seed, size)
    return files


def one_shot_runs(runs: int, classes: int, *, root: str = "") -> dict[str, bytes]:
    """Members of `all_runs.zip`. The test image of a class has the very pixels of its training image."""
    files = {}
    for run in range(1, runs + 1):
        name = f"run{run:02}"
        order = np.random.default_rng(run).permutation(classes)
        lines = []
        for i, c in enumerate(order, start=1):
            image = png(1000 * run + int(c))
            item, of_class = f"{name}/test/item{i:02}.png", f"{name}/training/class{c + 1:02}.png"
            files[root + item] = files[root + of_class] = image
            lines.append(f"{item} {of_class}\n")
        files[f"{root}{name}/class_labels.txt"] = "".join(lines).encode()
    return files


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path
