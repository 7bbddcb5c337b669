"""The benchmark's own arithmetic and judgement; no timing. Run with `python -m pytest bench`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.floors import forward_flop, meta_step_flop
from bench.gate import Gate, make_gate
from bench.peers import PEERS, Problem, Unsupported
from bench.report import load, section, speed_table
from bench.run import Row, admit, describe_error, write
from bench.timing import MIN_BLOCK_S, interleave
from bench.workloads import WORKLOADS

SMALL = WORKLOADS["sinusoid"].small()


@pytest.fixture(scope="module")
def gate() -> Gate:
    return make_gate(SMALL, first_order=False)


def row(peer: str, *samples_ms: float) -> Row:
    return Row("w", {"T": 4, "N": 5, "M": 5, "K": 1}, "maml", peer, "ok", samples_ms=samples_ms, bound=1e-4)


# --- floors ---


def test_forward_flop_counts_each_layer():
    # multiply-adds: 9 taps × channels in × channels out × pixels; the head is 64 × 5
    pixels = (28 * 28, 14 * 14, 7 * 7, 3 * 3)
    channels = (1, 64, 64, 64)
    blocks = [2 * 9 * c * 64 * p for c, p in zip(channels, pixels, strict=True)]
    assert forward_flop(WORKLOADS["omniglot-5w1s"]) == [*blocks, 2 * 64 * 5]
    assert forward_flop(WORKLOADS["sinusoid"]) == [2 * 40, 2 * 1600, 2 * 40]


@pytest.mark.parametrize("first_order, flop", [(True, 25 * 60 * 10000), (False, 25 * (60 * 10000 + 50 * 19840))])
def test_meta_step_flop_counts_gradients_and_hessian_vector_products(first_order: bool, flop: int):
    assert meta_step_flop(WORKLOADS["sinusoid"], first_order=first_order) == flop


# --- gate ---


@pytest.mark.parametrize(
    "peer", ["autograd loop", "learn2learn idiom", "torch.func vmap", "torch.func loop", "fastmeta eager"]
)
def test_gate_passes_a_correct_peer(peer: str, gate: Gate):
    result, step = admit(row(peer), Problem.of(SMALL, first_order=False), gate)
    assert (result.status, result.message) == ("ok", "")
    assert step is not None
    assert result.error is not None
    assert 0 < result.error < 1e-5


def test_gate_is_red_without_the_second_order_term(gate: Gate):
    result, step = admit(row("autograd loop"), Problem.of(SMALL, first_order=True), gate)
    assert step is None
    assert result.status == "wrong"
    assert result.error == pytest.approx(gate.order_gap, rel=1e-3)
    assert not result.samples_ms


def test_gate_is_red_on_nan_and_refuses_a_missing_parameter(gate: Gate):
    gradient = {name: p.detach() for name, p in SMALL.model().named_parameters()}
    assert math.isfinite(gate.error(gradient))
    assert math.isnan(gate.error(gradient | {"2.bias": gradient["2.bias"] * math.nan}))
    with pytest.raises(ValueError, match=r"no gradient for 2\.bias"):
        gate.error(gradient | {"2.bias": None})


def fails_with(error: Exception) -> Callable[[Problem], Callable[[], dict[str, object]]]:
    def prepare(_: Problem) -> Callable[[], dict[str, object]]:
        raise error

    return prepare


@pytest.mark.parametrize(
    "error, status, message",
    [
        (ModuleNotFoundError("No module named 'x'", name="x"), "not installed", "no module x"),
        (Unsupported("no such mode"), "unsupported", "no such mode"),
        (RuntimeError("at /a/b/c.py line 3\nmore"), "failed", "RuntimeError: at c.py line 3"),
        (MemoryError(), "failed", "MemoryError: "),
    ],
)
def test_a_failing_peer_is_a_row(
    error: Exception, status: str, message: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(PEERS, "broken", fails_with(error))
    result, step = admit(row("broken"), Problem.of(SMALL, first_order=False), gate)
    assert step is None
    assert (result.status, result.message) == (status, message)


def test_error_text_names_no_folder():
    assert "secret" not in describe_error(FileNotFoundError("[Errno 2] no file: '/home/secret/x.so'"))


# --- timing ---


def test_rounds_are_interleaved_and_a_failure_ends_one_part_only(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("bench.timing.time.perf_counter", lambda: clock[0])
    log: list[str] = []

    def takes(name: str, seconds: float, fail_after: int | None = None) -> Callable[[], None]:
        def function() -> None:
            clock[0] += seconds
            log.append(name)
            if fail_after is not None and log.count(name) > fail_after:
                raise RuntimeError(name)

        return function

    functions = {"a": takes("a", 1.0), "b": takes("b", 2.0), "c": takes("c", 1.0, fail_after=3)}
    figures = interleave(functions, rounds=10, budget_s=8.0)
    assert figures["a"] == [1.0] * 8
    assert figures["b"] == [2.0] * 4
    assert isinstance(figures["c"], RuntimeError)
    assert "".join(log) == "aabbcc" + "abc" + "abc" + "ab" * 2 + "a" * 4


def test_short_functions_are_repeated(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("bench.timing.time.perf_counter", lambda: clock[0])
    calls = [0]

    def short() -> None:
        clock[0] += 0.001
        calls[0] += 1

    figures = interleave({"short": short}, rounds=2, budget_s=60)["short"]
    assert figures == pytest.approx([0.001, 0.001])
    assert calls[0] >= 2 * MIN_BLOCK_S / 0.001


# --- report ---


def test_report_relates_every_peer_to_the_best_of_fastmeta():
    rows = [row("higher", 8.0, 6.0, 7.0), row("fastmeta eager", 4.0), row("fastmeta compiled", 2.0)]
    failed = Row("w", rows[0].sizes, "maml", "torchopt", "failed", "RuntimeError: x", bound=1e-4)
    lines = [line.split(" | ") for line in speed_table("w", "maml", [*map(_with_call, rows), failed], 100.0)]
    cells = {line[0].strip("| "): line for line in lines}
    assert cells["higher"][1:4] == ["7 (6.4–7.6)", "571", "3.50×"]
    assert cells["fastmeta eager"][3] == "2.00×"
    assert cells["torchopt"][1] == "failed: RuntimeError: x"


def _with_call(measured: Row) -> Row:
    return Row(**{**vars(measured), "first_call_s": 0.5, "flop": 10**8})


def test_report_reads_what_run_writes(tmp_path: Path):
    environment = {"cpu": "C", "python": "3", "packages": {"torch": "2"}, "commit": "abc", "date": "d"}
    result = {
        "format": 1,
        "environment": environment | {"load before": 0.0},
        "threads": 2,
        "matrix_product_gflops": 100.0,
        "rows": [vars(_with_call(row("higher", 8.0)))],
        "memory": [
            {"workload": "w", "peer": "p", "steps": k, "peak_mib": mib, "message": ""} for k, mib in ((1, 40), (10, 50))
        ],
    }
    path = tmp_path / "results" / "r.json"
    write(result, path)
    text = section(load(path))
    assert "| higher | 8 (8–8) | 500 |" in text
    assert "| p | 40 | 50 | 1.25 |" in text
    assert "Other processes" not in text
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no benchmark result"):
        load(path)
