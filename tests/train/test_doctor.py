"""`fastmeta doctor`, on this machine and on machines that miss something."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from kernel_stand_ins import Machine
from torch import nn

from fastmeta import doctor
from fastmeta.engine.backends.verdicts import VerdictStore
from fastmeta.train import doctor_command
from fastmeta.train.cli import main

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.proof,
    pytest.mark.skipif(torch.cuda.is_available(), reason="it would try kernels for minutes"),
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """An empty cache, on a machine without an NVIDIA GPU that PyTorch does not see."""
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "_has_nvidia_gpu", lambda: False)
    return tmp_path / "cache"


@pytest.fixture
def machine(monkeypatch) -> Machine:
    """A GPU with kernels, of which all that can be looked at is there."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("CC", "gcc")
    small = doctor.Workload(nn_of(nn.Tanh), (1,), 3, 2, 2, 1, 0.1, outputs=1)
    for place in (doctor, doctor_command):
        monkeypatch.setattr(place, "WORKLOADS", {"sinusoid": small})
    return Machine.put_in_place(monkeypatch)


def nn_of(activation):
    return lambda: nn.Sequential(nn.Linear(1, 3), activation(), nn.Linear(3, 1))


def said(capsys, *arguments, status=0) -> str:
    assert main(["doctor", *arguments]) == status
    return capsys.readouterr().out


def test_a_machine_without_a_gpu(capsys, place):
    out = said(capsys)
    for title in ("fastmeta", "python", "torch", "triton", "device", "C compiler"):
        assert f"\n{title}" in f"\n{out}"
    assert "no GPU is used here, so that plain torch ops run every program" in out
    assert f"{place / 'verdicts'}: 0 verdict(s), 0 KiB" in out
    for name in doctor.WORKLOADS:
        assert f"  {name:<16} kernels: yes; auto: torch (the module is on cpu" in out
    assert out.endswith("missing: nothing\n")


def test_what_kernels_do_not_take(capsys, monkeypatch):
    odd = doctor.Workload(nn_of(nn.Softsign), (1,), 2, 3, 3, 1, 0.1, outputs=1)
    monkeypatch.setitem(doctor.WORKLOADS, "sinusoid", odd)
    assert "sinusoid         kernels: no: " in said(capsys, "--workloads", "sinusoid")


def test_kernels_are_tried_and_what_is_found_is_kept(capsys, machine):
    out = said(capsys)
    assert "sinusoid         kernels: yes; auto: triton (Triton kernels proved right and faster)" in out
    assert "    one meta-step: Triton kernels 1 ms, torch ops 2 ms\n" in out
    assert "missing: nothing" in out
    timed = machine.timed
    out = said(capsys)
    assert "read from the cache" in out
    assert ": 1 verdict(s), " in out
    assert machine.timed == timed


def test_kernels_that_fail_are_a_fault_of_the_machine(capsys, machine):
    machine.spoil = lambda step: step._replace(loss=step.loss * 2)
    with pytest.warns(UserWarning, match="their numbers are wrong: mean losses"):
        out = said(capsys, status=1)
    assert "auto: torch (Triton kernels are not used: their numbers are wrong: mean losses" in out
    assert "missing:\n  Triton kernels failed on sinusoid: " in out
    assert "failed on sinusoid" in said(capsys, status=1), "and still are where that is read from the cache"


def test_bfloat16_that_kernels_do_not_run(capsys, machine):
    assert "nothing else has bfloat16" in said(capsys, "--precision", "bfloat16")
    machine.spoil = lambda step: step._replace(loss=step.loss * 2)
    shutil.rmtree(VerdictStore().folder)
    with pytest.warns(UserWarning, match="their numbers are wrong"):
        assert 'auto: none (precision="bfloat16" needs Triton' in said(capsys, "--precision", "bfloat16", status=1)


@pytest.mark.usefixtures("machine")
def test_what_is_missing(capsys, monkeypatch, tmp_path):
    none = ("--workloads",)
    assert "missing: nothing" in said(capsys, *none)
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "_has_nvidia_gpu", lambda: True)
        patch.setattr(torch.version, "cuda", None)
        assert "there is an NVIDIA GPU, and this PyTorch is a build for CPUs" in said(capsys, *none, status=1)
        patch.setattr(torch.version, "cuda", "12.8")
        assert "PyTorch cannot use it" in said(capsys, *none, status=1)
    with monkeypatch.context() as patch:
        patch.delenv("CC")
        patch.setattr(shutil, "which", lambda _: None)
        assert "there is no C compiler" in said(capsys, *none, status=1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "triton", None)
        assert "Triton cannot be imported" in said(capsys, *none, status=1)
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        assert "TRITON_INTERPRET is set" in said(capsys, *none, status=1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "file" / "cache"))
    out = said(capsys, *none, status=1)
    assert "nothing can be kept on disk" in out
    assert f"{os.sep}file" in out


@pytest.mark.usefixtures("machine")
def test_triton_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastmeta.kernels.activation", None)
    out = said(capsys)
    assert "kernels: unknown, as Triton cannot be imported; auto: torch (Triton kernels cannot be imported: " in out
