"""Runs of the command line, one of each family, which its tests share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from image_files import write_cifar, write_divided
from omniglot_files import background, write_zip

SHORT = ["--iterations", "3", "--episodes", "4", "--eval-steps", "2", "--meta-batch", "2"]
NETWORK = ["--channels", "4", "--ways", "3", "--queries", "2"]
RUNS = {
    "sinusoid": ["--iterations", "3", "--episodes", "6", "--algorithm", "fomaml"],
    "omniglot": ["omniglot", "--data", "images_background.zip", "--ways", "3", "--queries", "2", "--channels", "4",
                 "--inner-steps", "2", "--meta-batch", "2", "--iterations", "3", "--episodes", "6"],
    "umtra": ["umtra", "--data", "small.zip", *NETWORK, *SHORT],
    "cactus": ["cactus", "--data", "small.zip", *NETWORK, *SHORT, "--clusters", "6", "--partitions", "2",
               "--latent", "4", "--queries", "1"],
    "cluster": ["cluster", "--data", "small.zip", *SHORT, "--channels", "2", "--latent", "3", "--ways", "2",
                "--shots", "3", "--queries", "3", "--pretrain-iterations", "2", "--inner-steps", "1"],
    "ssl-images": ["ssl-images", "--data", "data_batch_1.bin", *NETWORK, *SHORT, "--ways", "4", "--shots", "1",
                   "--pretrain-iterations", "2", "--pretexts", "patches", "colours", "--model", "conv4"],
    "ssl-text": ["ssl-text", "--data", "a.txt", *SHORT, "--width", "8", "--length", "12", "--passage", "100",
                 "--shots", "2", "--queries", "2", "--inner-steps", "1", "--pretrain-iterations", "2"],
    "images": ["images", "--data", "mini", *NETWORK, *SHORT, "--ways", "2", "--shots", "1", "--queries", "1"],
    "glyphs": ["glyphs", *NETWORK, *SHORT],
}  # fmt: skip
"""What follows `fastmeta train`."""


class Run(NamedTuple):
    """A finished training: what follows `fastmeta`, and what was printed."""

    command: list[str]
    out: str
    err: str

    @property
    def checkpoint(self) -> str:
        """From the test's folder."""
        return f"runs/{self.command[1] if self.command[1] in RUNS else 'sinusoid'}/checkpoint.pt"


@contextlib.contextmanager
def short_stages() -> Iterator[None]:
    """Embeddings train for as few steps as networks here do, and of step sizes there are two to choose from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmeta.train.partitions.ITERATIONS", 3)
        for module in ("scores.compare", "pipeline"):
            patch.setattr(f"fastmeta.train.{module}.LR_FACTORS", (0.3, 1.0))
        patch.setattr("fastmeta.train.progress._SECONDS_BETWEEN_LINES", 0.0)
        yield


def write_data(folder: Path, command: list[str]) -> None:
    """The files that a command reads."""
    if "small.zip" in command:
        write_zip(folder / "small.zip", background({"Greek": 6, "Latin": 9}, drawers=6))
    if "images_background.zip" in command:
        write_zip(folder / "images_background.zip", background({"Greek": 4, "Korean": 3}, drawers=4))
    if "data_batch_1.bin" in command:
        write_cifar(folder / "data_batch_1.bin", 120, classes=4)
    if "mini" in command:
        write_divided(folder / "mini")
    if "a.txt" in command:
        (folder / "a.txt").write_text("to be or not to be, that is the question. " * 40)
