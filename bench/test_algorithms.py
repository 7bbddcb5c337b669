"""Algorithms with peers of their own: every row passes its gate, no mistake does. No speed is judged."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from .__main__ import main
from .algorithms import REGISTRY, problem_of, sized
from .gate import NoGate, make_gate
from .names import OTHERS
from .problem import MetaStep, Problem
from .records import Row
from .report import speed_table, summary
from .run import Settings, admit, measure
from .workloads import WORKLOADS

QUICK = Settings(rounds=1, budget_s=0.1)
BROKEN_IN_PYTORCH = {"meta-sgd", "maml++"}
"""`vmap` of batch norm's second derivative, see `peers.func_vmap`."""
CASES = [(name, workload) for name, found in REGISTRY.items() for workload in found.workloads if "mini" not in workload]


def small(name: str, workload: str):
    return sized(WORKLOADS[workload].sized_for("cpu"), name).small()


@pytest.mark.parametrize("name, workload", CASES)
def test_every_row_gives_the_meta_gradient_or_says_why_not(name: str, workload: str):
    peers = [peer for peer in REGISTRY[name].rows() if peer != "fastmeta compiled"]
    rows = {row.peer: row for row in measure(small(name, workload), peers, name, QUICK)}
    for peer, row in rows.items():
        if peer == "torch.func vmap" and name in BROKEN_IN_PYTORCH and "omniglot" in workload:
            assert row.status == "wrong"
        elif row.status != "ok":
            assert (row.status, peer) in {("not installed", "torchopt"), ("not installed", "jax vmap")}, row.message
        else:
            assert row.samples_ms, peer
            assert row.bound is not None, peer
            assert (row.error or 1) < row.bound, peer
    assert rows["fastmeta eager"].status == "ok"


@pytest.mark.parametrize("name, workload", CASES)
def test_no_mistake_passes(name: str, workload: str, monkeypatch: pytest.MonkeyPatch):
    entry = REGISTRY[name]
    here = small(name, workload)
    gate = make_gate(here, algorithm=name)
    rows = {"mistaken": entry.mistaken}
    monkeypatch.setitem(REGISTRY, name, dataclasses.replace(entry, peers=rows))
    row = Row("w", {}, name, "mistaken", "ok", bound=gate.bound)
    found, step = admit(row, problem_of(here, algorithm=name), gate, 60)
    assert (found.status, step) == ("wrong", None)
    assert found.error == pytest.approx(gate.gap, rel=0.1)


@pytest.mark.parametrize("name", ["meta-sgd", "maml++"])
@pytest.mark.parametrize("spoilt", ["rate", "theta"])
def test_both_what_is_learned_and_the_network_are_compared(name: str, spoilt: str):
    here = small(name, REGISTRY[name].workloads[0])
    gate = make_gate(here, algorithm=name)
    found = dict(REGISTRY[name].plain(problem_of(here, algorithm=name))())
    names = [key for key in found if key.startswith("rate") is (spoilt == "rate")]
    assert names
    assert gate.error(found) < gate.bound
    with torch.no_grad():
        assert gate.error({**found, **{key: 1.1 * found[key] for key in names}}) > gate.bound


def test_a_mistake_that_changes_nothing_leaves_no_gate(monkeypatch: pytest.MonkeyPatch):
    entry = REGISTRY["cavia"]
    monkeypatch.setitem(REGISTRY, "cavia", dataclasses.replace(entry, mistaken=entry.plain))
    with pytest.raises(NoGate, match="nothing would be proved"):
        make_gate(small("cavia", "sinusoid"), algorithm="cavia")


def test_a_peer_of_another_network_is_no_crash(monkeypatch: pytest.MonkeyPatch):
    def empty(_: Problem) -> MetaStep:
        return dict

    monkeypatch.setitem(REGISTRY, "cavia", dataclasses.replace(REGISTRY["cavia"], peers={"empty": empty}))
    (row,) = measure(small("cavia", "sinusoid"), ["empty"], "cavia", QUICK)
    assert row.status == "failed"
    assert "no gradient for" in row.message


def test_tables_leave_out_what_nobody_counted():
    ours = Row("w", {"T": 1}, "cavia", "fastmeta eager", "ok", samples_ms=(1.0,), first_call_s=0.1)
    peer = dataclasses.replace(ours, peer="authors' way", samples_ms=(2.0,))
    first, *lines = speed_table("w", "cavia", [peer, ours], {"float32": 100.0, "copy": 10.0})
    assert "GFLOP" not in first
    assert "is 2.00× as fast" in first
    assert lines[-2].split(" | ")[3:5] == ["1.00×", ""]


def test_the_command_runs_and_writes(tmp_path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "found.json"
    command = ["run", "--quick", "--rounds", "1", "--budget", "0.05", "--threads", "1", "--algorithm", "cavia"]
    assert main([*command, "--peer", "authors' way", "fastmeta eager", "--out", str(out)]) == 0
    assert "fastmeta eager is" in capsys.readouterr().out
    assert "| sinusoid-small (T=2, N=10, M=10, K=2) | cavia |" in summary([out])
    assert main([*command, "--peer", "nobody"]) == 2
    assert "unknown peer 'nobody'" in capsys.readouterr().err


def test_every_name_is_listed():
    assert tuple(REGISTRY) == OTHERS
