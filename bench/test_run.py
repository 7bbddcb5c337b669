"""Gate, peers, floors and the order of timing; no speed is judged. Run with `python -m pytest bench`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from . import environment
from .floors import floor_ms, forward_flop, meta_step_bytes, meta_step_flop
from .gate import Gate, NoGate, make_gate, relative
from .names import ALGORITHMS
from .peers import PEERS, peers_for
from .problem import Problem, Unsupported
from .records import Row, describe_error
from .run import Settings, admit, measure
from .timing import MIN_BLOCK_S, TooSlow, interleave, patience
from .workloads import WORKLOADS, workloads_for

SMALL = WORKLOADS["sinusoid"].small()


QUICK = Settings(rounds=1, budget_s=0.1)


@pytest.fixture(scope="module")
def gate() -> Gate:
    return make_gate(SMALL)


def row(peer: str) -> Row:
    return Row("w", {"T": 4, "N": 5, "M": 5, "K": 1}, "maml", peer, "ok", bound=1e-4)


# --- workloads ---


def test_a_large_batch_repeats_a_small_one_and_has_its_mean():
    large, small = WORKLOADS["sinusoid-1k"], WORKLOADS["sinusoid-1k"].unrepeated()
    assert (large.tasks, small.tasks) == (1000, 100)
    for repeated, once in zip(large.batch(), small.batch(), strict=True):
        assert torch.equal(repeated, once.repeat(10, 1, 1))
    odd = replace(large, tasks=130)
    assert odd.unrepeated() == odd
    assert not torch.equal(odd.batch().support_x[:30], odd.batch().support_x[100:])


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_runs(name: str):
    if name == "lora-gpt2":
        pytest.importorskip("peft")
    workload = WORKLOADS[name].sized_for("cpu").small()
    support_x, support_y, query_x, _ = workload.batch()
    assert support_x.shape == (workload.tasks, workload.support, *workload.sample_shape)
    assert workload.model()(query_x[0]).shape == (workload.query, workload.outputs)
    assert support_y.shape[:2] == support_x.shape[:2]


def test_full_sizes_are_for_a_gpu():
    assert WORKLOADS["omniglot-20w1s"].sized_for("cuda").tasks == 32
    assert WORKLOADS["omniglot-20w1s"].sized_for("cpu").tasks == 2
    assert set(workloads_for("cuda")) - set(workloads_for("cpu")) == {"sinusoid-10k"}


# --- floors ---


def test_forward_flop_counts_each_layer():
    # multiply-adds: 9 taps × channels in × channels out × pixels; the head is 64 × 5
    pixels = (28 * 28, 14 * 14, 7 * 7, 3 * 3)
    channels = (1, 64, 64, 64)
    blocks = [2 * 9 * c * 64 * p for c, p in zip(channels, pixels, strict=True)]
    assert forward_flop(WORKLOADS["omniglot-5w1s"]) == [*blocks, 2 * 64 * 5]
    assert forward_flop(WORKLOADS["sinusoid"]) == [2 * 40, 2 * 1600, 2 * 40]


@pytest.mark.parametrize(
    "algorithm, flop",
    [("reptile", 25 * 50 * 10000), ("fomaml", 25 * 60 * 10000), ("maml", 25 * (60 * 10000 + 50 * 19840))],
)
def test_meta_step_flop_counts_gradients_and_hessian_vector_products(algorithm: str, flop: int):
    assert meta_step_flop(WORKLOADS["sinusoid"], algorithm) == flop


def test_meta_step_bytes_counts_data_parameters_and_gradient_once():
    assert meta_step_bytes(WORKLOADS["sinusoid"], "maml") == 25 * 20 * 8 + 8 * 1761
    assert meta_step_bytes(WORKLOADS["sinusoid"], "reptile") == 25 * 10 * 8 + 8 * 1761
    images = 32 * 40 * (4 * 28 * 28 + 8)
    assert meta_step_bytes(WORKLOADS["omniglot-20w1s"], "maml") == images + 8 * (113_236)


def test_floor_is_the_longer_of_arithmetic_and_memory():
    ceilings = {"float32": 100.0, "copy": 10.0}
    assert floor_ms(10**9, 10**6, ceilings) == pytest.approx(10)
    assert floor_ms(10**6, 10**9, ceilings) == pytest.approx(100)


# --- gate ---


COMPILED = ("torch.compile", "fastmeta compiled")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_peer_gives_the_meta_gradient_or_says_why_not(algorithm: str):
    peers = [peer for peer in peers_for("cpu") if peer not in COMPILED]
    rows = {r.peer: r for r in measure(SMALL, peers, algorithm, QUICK)}
    refused = {name for name, r in rows.items() if r.status != "ok"}
    assert {rows[name].status for name in refused} <= {"not installed", "unsupported"}
    must = {"autograd loop", "learn2learn idiom", "torch.func vmap", "torch.func loop", "fastmeta eager"}
    assert refused.isdisjoint(must)
    assert all(rows[name].message for name in refused)
    for name in rows.keys() - refused:
        assert rows[name].samples_ms, name
        assert rows[name].peak_mib is not None, name
        assert 0 < (rows[name].error or 0) < 1e-5, name


def test_a_row_is_there_before_the_next_peer_is_admitted(monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []

    def watched(row: Row, *rest: Any) -> Any:
        order.append(f"admitted {row.peer}")
        return admit(row, *rest)

    def early(row: Row) -> None:
        order.append(f"{row.peer} {row.status} {len(row.samples_ms)}")

    monkeypatch.setattr("bench.run.admit", watched)
    peers = ["torch.func vmap", "torch.func vmap graph", "autograd loop"]
    rows = [*measure(SMALL, peers, "maml", replace(QUICK, rounds=2, budget_s=1, at_once=True), early=early)]
    assert order[:6] == [
        "admitted torch.func vmap", "torch.func vmap ok 3", "admitted torch.func vmap graph",
        "torch.func vmap graph unsupported 0", "admitted autograd loop", "autograd loop ok 3",
    ]  # fmt: skip
    assert order[6:] == ["torch.func vmap ok 2", "torch.func vmap graph unsupported 0", "autograd loop ok 2"]
    assert [len(row.samples_ms) for row in rows] == [2, 0, 2]


def test_adapters_are_for_peers_that_leave_the_rest_as_it_is():
    peers = ["autograd loop", "learn2learn idiom", "fastmeta eager"]
    workload = WORKLOADS["lora-gpt2"].sized_for("cpu").small()
    loop, clones, ours = measure(workload, peers, "maml", QUICK)
    if loop.status == "not installed":
        pytest.skip(loop.message)
    assert (loop.status, ours.status, clones.status) == ("ok", "ok", "unsupported"), (loop.message, ours.message)
    assert clones.message.startswith("learn2learn moves every parameter")


def test_a_network_of_a_package_that_is_missing_is_a_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (found,) = measure(WORKLOADS["lora-gpt2"].small(), ["autograd loop"], "maml", QUICK)
    assert found.status == "not installed"
    assert "pip install 'fastmeta[hub]'" in found.message


def test_kernels_are_a_row_that_says_why_they_wait():
    (found,) = measure(SMALL, ["fastmeta triton"], "maml", QUICK)
    if found.status == "ok":
        pytest.skip("Triton's interpreter is on")
    assert found.status == "unsupported"
    assert "needs a CUDA device" in found.message


def test_graphs_are_for_gpus():
    assert not [name for name in peers_for("cpu") if "graph" in name]
    (found,) = measure(SMALL, ["torch.func vmap graph"], "maml", QUICK)
    assert (found.status, found.message) == ("unsupported", "CUDA graphs need --device cuda")
    (found,) = measure(SMALL, ["fastmeta eager graph"], "maml", QUICK)
    assert found.status == "unsupported"
    assert "the module is on cpu, and CUDA graphs are for GPUs" in found.message


def test_bfloat16_is_refused_by_fastmeta_and_gated_by_what_pytorch_makes_of_it():
    gate = make_gate(SMALL, algorithm="reptile", precision="bfloat16")
    assert 1e-4 < gate.rounding_error < 0.1
    rows = {r.peer: r for r in measure(
        SMALL, ["autograd loop", "fastmeta eager"], "reptile", replace(QUICK, precision="bfloat16")
    )}  # fmt: skip
    assert rows["autograd loop"].status == "ok"
    assert rows["fastmeta eager"].status == "unsupported"
    assert rows["fastmeta eager"].message.startswith('precision="bfloat16" needs Triton kernels')


def test_no_gate_no_speed():
    still = replace(SMALL, lr=1e-7)
    with pytest.raises(NoGate, match="nothing would be proved"):
        make_gate(still)
    (found,) = measure(still, ["autograd loop"], "maml", QUICK)
    assert found.status == "no gate"
    assert not found.samples_ms


def test_gate_is_red_without_the_second_order_term(gate: Gate):
    result, step = admit(row("autograd loop"), Problem.of(SMALL, algorithm="fomaml"), gate, 60)
    assert step is None
    assert result.status == "wrong"
    assert result.error == pytest.approx(relative(make_gate(SMALL, algorithm="fomaml").truth, gate.truth), rel=1e-3)
    assert (result.error or 0) > gate.bound
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
        (TooSlow("the first call took more than 1 s"), "too slow", "the first call took more than 1 s"),
    ],
)
def test_a_failing_peer_is_a_row(
    error: Exception, status: str, message: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(PEERS, "broken", fails_with(error))
    result, step = admit(row("broken"), Problem.of(SMALL), gate, 60)
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


def test_a_function_far_beyond_the_budget_has_a_single_figure(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("bench.timing.time.perf_counter", lambda: clock[0])

    def slow() -> None:
        clock[0] += 30.0

    assert interleave({"slow": slow}, rounds=5, budget_s=10)["slow"] == [30.0]
    assert clock[0] == 30.0
    assert interleave({"slow": slow}, rounds=5, budget_s=40)["slow"] == [30.0]


def test_timing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch):
    clock, queued = [0.0], [0]
    monkeypatch.setattr("bench.timing.time.perf_counter", lambda: clock[0])

    def launch() -> None:
        clock[0] += 0.001
        queued[0] += 1

    def wait() -> None:
        clock[0] += 0.1 * queued[0]
        queued[0] = 0

    assert interleave({"launch": launch}, rounds=2, budget_s=60, wait=wait)["launch"] == pytest.approx([0.101] * 2)


def test_patience_ends():
    with pytest.raises(TooSlow, match=r"more than 0\.05 s"), patience(0.05):
        time.sleep(5)
    time.sleep(0.1)  # the alarm is off


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


def test_busy_processors_are_those_of_others(monkeypatch):
    ticks = iter([(100, 300), (150, 400)])  # half of the time idle
    monkeypatch.setattr(environment, "_processor_ticks", lambda: next(ticks))
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 8)
    assert environment.busy_processors(0.0) == 4.0
    monkeypatch.setattr(environment, "_processor_ticks", lambda: None)
    assert environment.busy_processors(0.0) is None
