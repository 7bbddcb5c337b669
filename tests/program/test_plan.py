"""A plan's sweeps where tasks have values in common."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from fastmeta.program.program import Program

T, N = 3, 5


class Masked(nn.Module):
    """Half of what it computes is made of a buffer alone."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("angles", torch.randn(5, 3))

    def forward(self, x):
        waves = torch.cos(self.angles * 2.0)
        return self.linear(x) * waves + torch.special.i0e(waves)


def test_what_is_made_of_constants_alone_is_computed_for_all_tasks_at_once():
    module, x = Masked().double(), torch.randn(T, N, 4, dtype=torch.float64)
    program = Program(module)
    plan = program.plan(x)
    seen: dict[str, list[int]] = {}
    for node in plan.nodes:
        object.__setattr__(node.op, "forward", partial(_noting, seen, node.label, node.op.forward))
    params = [p.expand(T, *p.shape) for p in module.parameters()]
    (y,), _ = plan.forward(params, (), (x,), program.constants(), torch.zeros(T, dtype=torch.int64))
    torch.testing.assert_close(y, torch.stack([module(x[t]) for t in range(T)]))
    assert seen == {"mul": [1, T], "cos": [1], "linear": [T], "special_i0e": [1], "add": [T]}


def _noting(seen, label, forward, *inputs):
    seen[label] = [*seen.get(label, []), inputs[0].shape[0]]
    return forward(*inputs)
