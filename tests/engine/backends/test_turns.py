"""Devices and streams: memory and counters of launches, with stand-ins for the GPUs that are not there."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.engine.backends import cuda_graph
from fastmeta.engine.backends.turns import Turns

launch = pytest.importorskip("fastmeta.kernels.launch")


class Stream:
    """Notes for whom it waits."""

    def __init__(self):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


def test_the_next_stream_waits_for_the_last_one(monkeypatch):
    first, second = Stream(), Stream()
    now = [first]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now[0])
    turns = Turns(torch.device("cuda:1"))
    for now[0] in (first, first, second, second, first):
        with turns:
            pass
    assert second.waited == [first]
    assert first.waited == [second]


def test_launches_go_to_the_tensors_gpu(monkeypatch):
    entered = []

    @contextmanager
    def device(which):
        entered.append(which)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    for where in ("cpu", "cuda:0", "cuda:1"):
        with launch.on_card(SimpleNamespace(device=torch.device(where))):
            pass
    assert entered == [torch.device("cuda:1")]


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose zeros lie on the CPU; its attributes are the current stream and whether a capture goes on."""
    state = SimpleNamespace(stream=7, capturing=False)
    zeros = torch.zeros
    monkeypatch.setattr(launch, "stream_of", lambda device: state.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    monkeypatch.setattr(torch, "zeros", lambda count, *, dtype, device: zeros(count, dtype=dtype))
    return state


def test_counters_are_a_streams_own_and_a_graphs_own(gpu):
    common, own, device = {}, {}, torch.device("cuda:0")
    one = launch.counters(common, device, 4)
    assert launch.counters(common, device, 4) is one
    gpu.stream = 8
    assert launch.counters(common, device, 4) is not one
    with launch.counters_of(own):
        mine = launch.counters(common, device, 4)
        gpu.stream, gpu.capturing = 7, True
        assert launch.counters(common, device, 4) is mine, "those of the warm-up are there in the capture"
    assert launch.counters(common, device, 4) is not launch.counters(common, device, 4), "a user's own graph"
    gpu.capturing = False
    assert launch.counters(common, device, 4) is one
    assert len(common) == 2


def test_a_capture_has_a_stream_of_its_own_device(monkeypatch):
    """PyTorch's default for captures is one stream for all devices."""
    given, made = [], []

    class Made(Stream):
        def __init__(self, device):
            super().__init__()
            made.append((self, device))

    def graph(_, **options):
        given.append(options["stream"])
        return nullcontext()

    device = torch.device("cuda:1")
    for name, value in {
        "device": lambda _: nullcontext(), "current_stream": Stream, "Stream": Made, "graph": graph,
        "stream": lambda _: nullcontext(), "CUDAGraph": lambda: SimpleNamespace(replay=None),
        "get_sync_debug_mode": lambda: 0, "set_sync_debug_mode": lambda _: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    cuda_graph.record(lambda: None, device)
    assert [(given[0], device)] == made


def test_graphs_that_are_recorded_again_and_again_say_so_once(monkeypatch):
    """Each `load_state_dict(assign=True)` makes new parameters, a new program and new graphs."""
    monkeypatch.setattr(cuda_graph, "record", lambda step, _: ((lambda: None), step()))
    monkeypatch.setattr(cuda_graph, "DEVICES", ("cpu",))
    learner = fastmeta.MAML(nn.Linear(2, 1), inner_loss=nn.functional.mse_loss, cuda_graph=True)
    batch = [torch.randn(2, 3, n) for n in (2, 1, 2, 1)]

    def record():
        learner.module.load_state_dict({k: v.clone() for k, v in learner.module.state_dict().items()}, assign=True)
        for _ in range(2):
            learner(*batch)

    for _ in range(4):
        record()
    with pytest.warns(UserWarning, match=r"recorded the same meta-step more than 4 times.*p\.copy_\(value\)"):
        record()
    record()
