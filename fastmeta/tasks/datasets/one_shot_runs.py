"""The official one-shot classification runs of Omniglot: 20-way, within one alphabet, one image per class.

Each of `run01` ... `run20` holds `training/class01.png` ..., `test/item01.png` ... and `class_labels.txt`,
whose lines pair a test image with the training image of its class, as
`run01/test/item01.png run01/training/class01.png` does.
(Lake, Salakhutdinov, Tenenbaum 2015; `python/one-shot-classification` of github.com/brendenlake/omniglot.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from fastmeta.tasks.base import Episodes

from .archive import Archive
from .pixels import floats


@dataclass(frozen=True, repr=False)
class Run:
    """One run.

    Attributes:
        name: `run01`, ...
        support_x: float32 [C, 1, 28, 28], the training image of each class, ink is 1.
        support_y: int64 [C], 0 ... C − 1.
        query_x: float32 [M, 1, 28, 28].
        query_y: int64 [M].
    """

    name: str
    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __repr__(self) -> str:
        return f"Run({self.name}: {len(self.support_x)} classes, {len(self.query_x)} test images)"


def load_runs(path: str | Path) -> list[Run]:
    """Read `all_runs.zip` or the folder it unpacks to.

    Raises:
        FileNotFoundError: where nothing lies at `path`.
        ValueError: for a damaged file, or a path that holds no run.
        RuntimeError: without Pillow (`pip install "fastmeta[train]"`).
    """
    with Archive(Path(path)) as archive:
        labels = [name for name in archive.names() if PurePosixPath(name).name == "class_labels.txt"]
        labels = [name for name in labels if "__MACOSX" not in name]
        if not labels:
            raise ValueError(f"{path} holds no class_labels.txt; give all_runs.zip or the folder of run01, ...")
        return [_read_run(archive, name) for name in labels]


def stack_runs(runs: Sequence[Run], device: torch.device) -> Episodes:
    """All runs as one meta-batch, T = number of runs.

    Raises:
        ValueError: for runs of different size.
    """
    shapes = {(tuple(run.support_x.shape), tuple(run.query_x.shape)) for run in runs}
    if len(shapes) != 1:
        raise ValueError(f"runs must all have as many classes and test images, got {sorted(shapes)}")
    fields = ("support_x", "support_y", "query_x", "query_y")
    return Episodes(*(torch.stack([getattr(run, name) for run in runs]).to(device) for name in fields))


def _read_run(archive: Archive, labels: str) -> Run:
    folder = PurePosixPath(labels).parent
    pairs = []
    for number, line in enumerate(archive.read(labels).decode(errors="replace").splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2:
            raise ValueError(
                f"{archive.label(labels)}, line {number}: expected 'run01/test/item01.png "
                f"run01/training/class01.png', got {line!r}"
            )
        # The names repeat the run's own folder; only what follows counts: a renamed folder does no harm.
        pairs.append(tuple(str(folder.joinpath(*PurePosixPath(part).parts[-2:])) for part in parts))
    if not pairs:
        raise ValueError(f"{archive.label(labels)} is empty; expected one line for each test image")
    classes = sorted({support for _, support in pairs})
    return Run(
        folder.name or archive.path.stem,
        _read_images(archive, classes),
        torch.arange(len(classes)),
        _read_images(archive, [query for query, _ in pairs]),
        torch.tensor([classes.index(support) for _, support in pairs]),
    )


def _read_images(archive: Archive, names: Sequence[str]) -> Tensor:
    images = np.stack([archive.read_image(name) for name in names])
    return floats(torch.from_numpy(images)).unsqueeze(1)
