"""Stand-ins for a GPU, its clock and its kernels: what backend="auto" decides by, without any of them.

The stand-in of the kernels is the torch backend, whose results a test may spoil.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastmeta.engine import auto
from fastmeta.engine.backends import choose
from fastmeta.engine.backends.torch_ops import TorchBackend


class StandIn(TorchBackend):
    """Kernels, as far as anyone sees from outside."""

    def __init__(self, engine, tasks, options, machine):
        super().__init__(engine, tasks, chunk=options.task_chunk, compiled=False)
        self.runs_by, self.machine = "kernels", machine

    def meta_step(self, at, support, query, context, *, keep, shares=True):
        self.machine.calls += 1
        return self.machine.spoil(super().meta_step(at, support, query, context, keep=keep, shares=shares))

    def adapt(self, at, support, context, *, keep):
        self.machine.calls += 1
        return super().adapt(at, support, context, keep=keep)

    def outputs(self, phi, support, inputs, context):
        self.machine.calls += 1
        return super().outputs(phi, support, inputs, context)


def as_it_is(step):
    return step


@dataclass
class Machine:
    """A device with kernels and a clock.

    Attributes:
        torch_s, kernels_s: what the clock says of a call.
        spoil: what comes out of the kernels in place of a meta-step's right results.
        made: what happens when they are made.
        calls, made_count, timed: what was done so far.
    """

    torch_s: float = 2e-3
    kernels_s: float = 1e-3
    spoil: Callable[[Any], Any] = as_it_is
    made: Callable[[], None] = field(default=lambda: None)
    calls: int = 0
    made_count: int = 0
    timed: int = 0

    def make(self, engine, graph, tasks, options):
        self.made_count += 1
        assert graph.stages, "the graph of the program"
        self.made()
        return StandIn(engine, tasks, options, self)

    def seconds(self, call, times, device):
        assert device.type == "cpu"
        self.timed += 1
        before = self.calls
        for _ in range(times):
            call()
        return self.torch_s if self.calls == before else self.kernels_s

    @classmethod
    def put_in_place(cls, monkeypatch):
        """A CPU counts as a GPU until the test ends."""
        made = cls()
        monkeypatch.setattr(choose, "KERNEL_DEVICES", ("cpu",))
        monkeypatch.setattr(auto, "make_kernels", made.make)
        monkeypatch.setattr(auto, "seconds", made.seconds)
        return made

    @property
    def tried(self):
        """Whether there was a trial: how often something was timed or computed."""
        return self.timed, self.calls
