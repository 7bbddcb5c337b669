"""What is compiled ahead is what is run, one kernel that does not compile is one kernel, and what stages change."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from .compile_ahead import compile_share, job, key_of, meta_step, pairs_of, shares_of
from .peers import PEERS
from .problem import Problem
from .workloads import WORKLOADS

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") != "0", reason="interpreted, not compiled")


def keys(run: Any) -> set[Any]:
    """Of what is launched for sm_90, without compiling it."""
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports]  # mapped by setup.py
    from fastmeta.kernels.ahead_of_time import compiled_for  # pyright: ignore[reportMissingImports]

    found = set()
    watch = launch.through(lambda kernel, _, __, args, options: found.add(key_of(kernel, args, options)))
    with compiled_for("sm_90", lambda *_: None), watch:
        run()
    return found


@pytest.mark.filterwarnings("ignore")  # nothing has run, so what came out is whatever memory held
@pytest.mark.parametrize("name, precision", [("sinusoid", "float32"), ("omniglot-5w1s", "bfloat16")])
def test_what_is_compiled_is_what_the_peer_launches(name: str, precision: str):
    workload = WORKLOADS[name]
    compiled = keys(lambda: meta_step(workload, precision))
    run = keys(lambda: PEERS["fastmeta triton"](Problem.of(workload, precision=precision)))
    assert len(compiled) >= 4
    assert run <= compiled


def test_the_number_of_tasks_decides_what_is_compiled():
    few, many = (keys(lambda t=t: meta_step(replace(WORKLOADS["omniglot-5w1s"], tasks=t), "tf32")) for t in (2, 8))
    assert few != many


def test_what_triton_compiles_anew_has_another_key():
    kernel, x = SimpleNamespace(__name__="k"), torch.zeros(32)
    first = key_of(kernel, (x, 32, 1), {"BLOCK": 16})
    assert first == key_of(kernel, (x[16:], 64, 1), {"BLOCK": 16})
    others = [(x[1:], 32, 1), (x, 33, 1), (x, 32, 16), (x.double(), 32, 1), (x, 2**40, 1)]
    assert all(key_of(kernel, args, {"BLOCK": 16}) != first for args in others)
    assert key_of(kernel, (x, 32, 1), {"BLOCK": 32}) != first


def test_every_kernel_is_in_one_share_and_one_that_fails_is_one(monkeypatch: pytest.MonkeyPatch):
    from triton.runtime.jit import JITFunction

    def warmup(self: Any, *_: Any, **__: Any) -> SimpleNamespace:
        if "adjoint" in self.__name__:
            raise RuntimeError("out of registers")
        return SimpleNamespace(asm={"ptx": self.__name__})

    monkeypatch.setattr(JITFunction, "warmup", warmup)
    monkeypatch.setattr("fastmeta.kernels.ahead_of_time.keep_launcher", lambda _: None)
    workload = WORKLOADS["sinusoid"]
    count = len(keys(lambda: meta_step(workload, "float32")))
    found = [compile_share(workload, "float32", "sm_90", share=share, of=3) for share in range(3)]
    places = [place for part in found for place in (*part["codes"], *part["failed"])]
    assert sorted(map(int, places)) == [*range(count)]
    (failure,) = (text for part in found for text in part["failed"].values())
    assert failure.startswith("adjoint_kernel")
    assert failure.endswith("RuntimeError: out of registers")
    rows = [job(workload, "float32", "sm_90", share) for share in range(shares_of(workload))]
    assert sum(row["kernels"] for row in rows) == count - 1
    assert [text for row in rows for text in row["failed"]] == [failure]


def test_stages_do_not_change_the_code_of_a_perceptrons_loop():
    """Where they do, they belong into the table of the tests on a GPU (`STAGES_OF_LOOPS`)."""
    small = replace(WORKLOADS["sinusoid"].small(), width=8)
    one, three = (compile_share(small, "float32", "sm_90", forced={"num_stages": stages}) for stages in (1, 3))
    assert not one["failed"]
    assert one == three


def test_a_kernel_that_is_asked_for_wrongly_is_named():
    assert pairs_of(["sinusoid:tf32"]) == [("sinusoid", "tf32")]
    with pytest.raises(ValueError, match="unknown precision ''"):
        pairs_of(["sinusoid"])
    with pytest.raises(ValueError, match="unknown workload 'x'"):
        pairs_of(["x:tf32"])
