"""Calls whose op must not change an integer's dtype or reduce over the tasks, against the module itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmeta.ops.dropout import task_keys
from fastmeta.program.lowering import RULES
from fastmeta.program.program import Program

T, N = 3, 5
INTEGERS = {
    "index + 1": lambda m, i: m.table(i + 1),
    "index * 2": lambda m, i: m.table(i * 2),
    "index + index": lambda m, i: m.table(i + i),
    "index * index": lambda m, i: m.table((i * i) % 9),
    "3 - index": lambda m, i: m.table(3 - i),
    "index - index": lambda m, i: m.table(i - i),
    "--index": lambda m, i: m.table(torch.neg(-i)),
    "index / 2": lambda m, i: m.table(i) * (i / 2)[:, None],
}
SCALARS = {
    "mean of a mean": lambda m, x: m.linear(x).mean().mean(),
    "sum of a scalar": lambda m, x: m.linear(x) * m.scale.sum(),
    "no dimensions": lambda m, x: m.linear(x).sum(dim=()),
    "flatten": lambda m, x: m.linear(x) * torch.flatten(m.scale),
    "squeeze": lambda m, x: m.linear(x) * m.scale.squeeze() + m.scale.squeeze(0),
}


class Calling(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.table, self.linear, self.scale = nn.Embedding(9, 4), nn.Linear(4, 3), nn.Parameter(torch.randn(()))

    def forward(self, x):
        return self.call(self, x)


def check(call, x):
    module = Calling(call)
    program = Program(module)
    params = [p.detach().expand(T, *p.shape) for p in module.parameters()]
    (y,), _ = program.plan(x).forward(params, (), [x], program.constants(), task_keys(0, T, x.device))
    torch.testing.assert_close(y, torch.stack([module(one) for one in x]).detach())


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_stay_integers(name):
    check(INTEGERS[name], torch.randint(0, 4, (T, N)))


@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_of_a_task_is_not_reduced_over_the_tasks(name):
    check(SCALARS[name], torch.randn(T, N, 4))


def test_a_bug_in_a_rule_is_no_reason_for_an_opaque_op(monkeypatch):
    def buggy(_, x):
        return x + None

    monkeypatch.setitem(RULES, torch.tanh, buggy)
    with pytest.raises(TypeError, match="unsupported operand"):
        Program(Calling(lambda m, x: torch.tanh(m.linear(x)))).plan(torch.randn(T, N, 4))


UNUSUAL = {
    "keyword": lambda m, x: torch.tanh(input=m.linear(x)),
    "dtype": lambda m, x: m.linear(x).mean(1, dtype=torch.float32),
    "too many": lambda m, x: m.linear(x).clone(memory_format=torch.preserve_format),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_arguments_that_a_rule_does_not_know_make_an_opaque_op(name):
    module = Calling(UNUSUAL[name])
    whys = [node.why for node in Program(module).plan(torch.randn(T, N, 4)).nodes]
    assert whys[0] == ""
    assert whys[1].startswith("called with unusual arguments (")
    check(UNUSUAL[name], torch.randn(T, N, 4))


def test_a_result_that_is_written_elsewhere_is_read_from_there():
    def call(m, x):
        y = m.linear(x.detach())
        with torch.no_grad():
            z = torch.zeros_like(x)
            torch.tanh(x, out=z)
        return y + z.sum()

    module = Calling(call)
    plan = Program(module).plan(torch.randn(T, N, 4))
    assert [(node.op.name, node.active) for node in plan.nodes if node.label == "tanh"] == [("tanh", False)]
    check(call, torch.randn(T, N, 4))
