"""Launches of a meta-step one by one, stages and warps: what is done with them, on a stand-in for kernels."""

from __future__ import annotations

from typing import Any

import pytest

from . import sweep
from .launch_times import Launch, launches, together
from .sweep import Config, a_step, configs, launched_with, same_code


class Kernel:
    def __init__(self, name: str) -> None:
        self.__name__ = name


def test_launches_are_watched_in_order_and_what_they_run_is_unchanged(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("triton")
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    ran: list[str] = []
    monkeypatch.setattr(launch, "run", lambda kernel, label, *_: ran.append(f"{kernel.__name__} {label}"))

    def step() -> dict[str, Any]:
        launch.launch(Kernel("adapt_kernel"), (25,), label="first")
        launch.launch(Kernel("mean_kernel"), (4,))
        return {}

    found, us = launches(step, "cpu")
    assert ran == ["adapt_kernel first", "mean_kernel "]
    assert [each[:3] for each in found] == [("adapt_kernel", "first", 25), ("mean_kernel", "", 4)]
    assert sum(each.us for each in found) <= us
    step()
    assert len(found) == 2, "watched inside only"


def test_on_a_gpu_events_stand_around_launches_of_a_device_that_sleeps(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("triton")
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    order: list[Any] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = len(order)
            order.append("event")

        def elapsed_time(self, end: Any) -> float:
            assert order[-1] == "waited"
            return 0.001 * (end.at - self.at)

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda._sleep", lambda clocks: order.append("asleep"))
    monkeypatch.setattr("torch.cuda.synchronize", lambda: order.append("waited"))
    monkeypatch.setattr(launch, "run", lambda kernel, *_: order.append(kernel.__name__))

    def step() -> dict[str, Any]:
        launch.launch(Kernel("a"), (3,))
        launch.launch(Kernel("b"), (3,))
        return {}

    found, us = launches(step, "cuda")
    assert order == ["asleep", "event", "a", "event", "event", "b", "event", "waited"]
    assert [each[:3] for each in found] == [("a", "", 3), ("b", "", 3)]
    assert [*(each.us for each in found), us] == pytest.approx([2.0, 2.0, 5.0])


def test_launches_of_one_kind_are_added_up_and_rounds_take_their_median():
    rounds = [[Launch("a", "x", 5, us), Launch("b", "", 1, 1.0), Launch("a", "x", 5, 2.0)] for us in (3.0, 9.0, 4.0)]
    assert together(rounds) == [
        {"kernel": "a", "label": "x", "programs": 5, "launches": 2, "us": 6.0, "least us": 2.0, "most us": 4.0},
        {"kernel": "b", "label": "", "programs": 1, "launches": 1, "us": 1.0, "least us": 1.0, "most us": 1.0},
    ]
    with pytest.raises(RuntimeError, match="launched different kernels"):
        together([rounds[0], rounds[0][:2]])


def test_a_sweep_changes_hot_kernels_only(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("triton")
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            self.recorded = False

        def record(self) -> None:
            self.recorded = True

    seen: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr(launch, "run", lambda kernel, _, __, ___, options: seen.append((kernel.__name__, options)))
    mean = {"num_stages": 1, "num_warps": 8}
    own = {**mean, "PRECISION": "tf32"}
    with launched_with(Config("float32", 3, None)) as events:
        launch.launch(Kernel("adjoint_kernel"), (1,), **own)
        launch.launch(Kernel("mean_kernel"), (1,), **mean)
    launch.launch(Kernel("adjoint_kernel"), (1,), **own)
    stages = [(name, options["num_stages"], options["num_warps"]) for name, options in seen]
    assert stages == [("adjoint_kernel", 3, 8), ("mean_kernel", 1, 8), ("adjoint_kernel", 1, 8)]
    assert {name: [all(e.recorded for e in pair) for pair in pairs] for name, pairs in events.items()} == {
        "adjoint_kernel": [True], "mean_kernel": [True],
    }  # fmt: skip
    for workload, count in (("sinusoid", 12), ("mini-5w1s", 21)):
        assert configs(workload)[0] == Config("float32", None, None)
        assert len(configs(workload)) == len(set(configs(workload))) == count


def test_the_same_code_is_not_timed_again():
    own, first, second, other = (Config("tf32", *pair) for pair in ((None, None), (1, 8), (2, 8), (1, 4)))
    codes = {("sinusoid", own): "a b", ("sinusoid", other): "c d", ("sinusoid", second): "a b", ("sinusoid", first): ""}
    assert same_code("sinusoid", second, codes) == own
    assert same_code("sinusoid", own, codes) is None
    assert same_code("sinusoid", other, codes) is None
    assert same_code("sinusoid", first, codes) is None, "one that did not compile is measured, which says why"
    lower = Config("bfloat16", None, None)
    assert same_code("sinusoid", lower, codes | {("sinusoid", lower): "a b"}) is None, "it has another gate"


def test_a_sweep_compiles_all_pairs_first_and_measures_each_code_once(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("triton")
    pairs = [Config("tf32", None, None), Config("tf32", 2, 8), Config("tf32", 1, 4), Config("tf32", 1, 16)]
    monkeypatch.setattr(sweep, "configs", lambda _: pairs)
    asked: list[Any] = []

    def side_by_side(jobs: list[Any], *, limit_s: float, preload: Any) -> Any:
        assert limit_s == 60
        assert preload
        for place, job in reversed([*enumerate(jobs)]):
            name, config, _ = job.args
            asked.append((name, config, job.keywords["share"]))
            warps, share = config.forced.get("num_warps", 8), job.keywords["share"]
            if (warps, share) == (16, 2):
                yield Done(place, None, "its process ended with status 1")
            else:
                yield Done(place, {"codes": {str(share): f"code {share} of {warps} warps"}, "failed": {}})

    from fastmeta.kernels.side_by_side import Done  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    monkeypatch.setattr("fastmeta.kernels.side_by_side.side_by_side", side_by_side)
    codes = sweep.compile_ahead(["sinusoid"], "sm_90", 60)
    assert len(asked) == len(pairs) * 4
    assert {*codes} == {("sinusoid", pair) for pair in pairs[:3]}
    assert codes["sinusoid", pairs[0]].startswith("code 0 of 8 warps code 1 of 8")
    monkeypatch.setattr(sweep, "make_gate", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "measure", lambda workload, config, _: {"measured": config})
    rows = [*sweep.measured("sinusoid", codes)]
    assert [row.get("measured") for row in rows] == [pairs[0], None, pairs[2], pairs[3]]
    assert rows[1] == {
        "workload": "sinusoid", "precision": "tf32", "stages": 2, "warps": 8, "same code as": [None, None]
    }  # fmt: skip


def test_launches_of_a_kernel_are_added_up_step_by_step():
    assert a_step([1.0, 2.0, 10.0, 20.0, 3.0, 4.0], 3) == 7.0
