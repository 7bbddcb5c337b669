"""Checkpoint files: plain data, written atomically, refused where they are damaged."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from training import same, trainer

from fastmeta.train.checkpoint import KEYS, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    run = trainer(tmp_path, iterations=2)
    run.run()
    return run.checkpoint


def test_a_checkpoint_is_plain_data(checkpoint):
    state = load_checkpoint(checkpoint)
    assert state.keys() == {"format", *KEYS}
    model = nn.Sequential(nn.Linear(1, 13), nn.Tanh(), nn.Linear(13, 1))
    model.load_state_dict(state["model"])
    assert {path.name for path in checkpoint.parent.iterdir()} == {"checkpoint.pt", "log.jsonl", ".lock"}


def test_writing_is_atomic(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def full_disk(_, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(checkpoint, {})
    assert checkpoint.read_bytes() == before
    monkeypatch.undo()
    save_checkpoint(checkpoint, load_checkpoint(checkpoint))
    assert {path.name for path in checkpoint.parent.iterdir()} == {"checkpoint.pt", "log.jsonl", ".lock"}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint(checkpoint, share):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged .*; restore it from a copy"):
        trainer(checkpoint.parent).run()
    assert checkpoint.read_bytes() == data[: int(share * len(data))]


def test_no_flipped_byte_goes_unnoticed(checkpoint):
    data = checkpoint.read_bytes()
    good = load_checkpoint(checkpoint)
    refused = 0
    for position in range(5, len(data), len(data) // 60):
        checkpoint.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        try:
            assert same(load_checkpoint(checkpoint), good)  # padding between the records
        except ValueError as error:
            refused += "checkpoint.pt" in str(error)
    assert refused > 20


def test_loading_executes_nothing(checkpoint, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"format": 1, "model": Trap()}, checkpoint)
    with pytest.raises(ValueError, match="holds more than tensors and numbers"):
        load_checkpoint(checkpoint)
    checkpoint.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        load_checkpoint(checkpoint)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    "state, message",
    [
        ([1, 2], "is no checkpoint of fastmeta"),
        ({"model": 1}, "is no checkpoint of fastmeta"),
        ({"format": 99}, "has checkpoint format 99, this version of fastmeta reads 1"),
        ({"format": 1, "model": 1}, "lacks configuration, iteration, optimizer"),
    ],
)
def test_foreign_checkpoint(tmp_path, state, message):
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path / "checkpoint.pt")
