"""Rules of whatever repeats, turns, pads or picks elements against PyTorch's own functions, in all four sweeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_harness import randn
from rules import Sketch, check_rule

from fastmeta.program.lowering import NotKnown, rearrange, shapes

T, N = 2, 3
S = (N, 1, 4)

CALLS = {
    "expand": (lambda to, x: rearrange.expand(to, x, 2, -1, 5, 4), lambda x: x.expand(2, -1, 5, 4)),
    "expand by a shape": (lambda to, x: rearrange.expand(to, x, (N, 5, -1)), lambda x: x.expand(N, 5, -1)),
    "expand by name": (lambda to, x: rearrange.expand(to, x, size=(N, 5, 4)), lambda x: x.expand(N, 5, 4)),
    "broadcast_to": (lambda to, x: rearrange.broadcast_to(to, x, (N, 2, 4)), lambda x: x.broadcast_to((N, 2, 4))),
    "repeat": (lambda to, x: rearrange.repeat(to, x, 2, 1, 3, 1), lambda x: x.repeat(2, 1, 3, 1)),
    "repeat_interleave": (
        lambda to, x: rearrange.repeat_interleave(to, x, 2, -1),
        lambda x: x.repeat_interleave(2, -1),
    ),
    "flip": (lambda to, x: rearrange.flip(to, x, 0, -1), lambda x: x.flip(0, -1)),
    "flip by name": (lambda to, x: rearrange.flip(to, x, dims=(0,)), lambda x: x.flip(0)),
    "roll": (lambda to, x: rearrange.roll(to, x, 1, -1), lambda x: x.roll(1, -1)),
    "roll several": (lambda to, x: rearrange.roll(to, x, (1, 2), dims=(0, 2)), lambda x: x.roll((1, 2), (0, 2))),
    "roll of all": (lambda to, x: rearrange.roll(to, x, 5), lambda x: x.roll(5)),
    "narrow": (lambda to, x: rearrange.narrow(to, x, -1, 1, length=2), lambda x: x.narrow(-1, 1, 2)),
    "narrow from the end": (lambda to, x: rearrange.narrow(to, x, 2, -2, 2), lambda x: x.narrow(2, -2, 2)),
    "select": (lambda to, x: rearrange.select(to, x, 2, index=-1), lambda x: x.select(2, -1)),
    "T": (rearrange.reversed_dims, lambda x: x.permute(2, 1, 0)),
    "mT": (rearrange.matrix_transpose, lambda x: x.mT),
    "movedim": (lambda to, x: rearrange.movedim(to, x, 0, -1), lambda x: x.movedim(0, -1)),
    "movedim of two": (lambda to, x: rearrange.movedim(to, x, (0, 2), (1, 0)), lambda x: x.movedim((0, 2), (1, 0))),
    "swapaxes": (lambda to, x: rearrange.swapaxes(to, x, 0, axis1=-1), lambda x: x.swapaxes(0, -1)),
    "unflatten": (lambda to, x: rearrange.unflatten(to, x, -1, (2, -1)), lambda x: x.unflatten(-1, (2, -1))),
    "triu": (rearrange.triu, torch.triu),
    "tril": (lambda to, x: rearrange.tril(to, x, diagonal=1), lambda x: x.tril(1)),
    "cumsum": (lambda to, x: rearrange.cumsum(to, x, dim=-1), lambda x: x.cumsum(-1)),
    "pad": (lambda to, x: rearrange.pad(to, x, (1, 2)), lambda x: F.pad(x, (1, 2))),
    "pad with a value": (
        lambda to, x: rearrange.pad(to, x, [1, -1, 2, 0], value=3),
        lambda x: F.pad(x, (1, -1, 2, 0), value=3),
    ),
    "permute by name": (lambda to, x: shapes.permute(to, x, dims=(2, 0, 1)), lambda x: x.permute(2, 0, 1)),
    "reshape by name": (lambda to, x: shapes.reshape(to, x, shape=(4, -1)), lambda x: x.reshape(4, -1)),
    "a list of indices": (lambda to, x: shapes.getitem(to, x, [0, -1, 0]), lambda x: x[[0, -1, 0]]),
    "a list behind": (lambda to, x: shapes.getitem(to, x, (..., [0, 3])), lambda x: x[..., [0, 3]]),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    rule, plain = CALLS[name]
    check_rule(rule, plain, randn(T, *S))


def test_interpolation():
    x = randn(T, N, 2, 3, 2)
    for options in ({"scale_factor": 2}, {"scale_factor": (1, 3)}, {"size": (6, 2)}):
        rule = lambda to, x, o=options: rearrange.interpolate(to, x, **o)  # noqa: E731
        check_rule(rule, lambda x, o=options: F.interpolate(x, **o), x)
    to = Sketch()
    for options in ({"scale_factor": 1.5}, {"scale_factor": 2, "mode": "bilinear"}, {"size": 4}):
        with pytest.raises(NotKnown, match="interpolation"):
            rearrange.interpolate(to, to.slot(x[0]), **options)


def test_several_tensors():
    check_rule(lambda to, *s: rearrange.stack(to, s, -1), lambda *s: torch.stack(s, -1), *(randn(T, *S) for _ in "ab"))
    check_rule(rearrange.expand_as, lambda x, other: x.expand_as(other), randn(T, 4), torch.ones(T, N, 4).long())
    check_rule(rearrange.reshape_as, lambda x, other: x.reshape_as(other), randn(T, *S), torch.ones(T, 4, N).long())
    check_rule(rearrange.t, torch.t, randn(T, N, 4))
    check_rule(rearrange.t, torch.t, randn(T, 4))


def test_indices():
    x, rows, columns = randn(T, 5, N, 4), torch.randint(-5, 5, (T, 2)), torch.randint(0, N, (T, 2))
    get = shapes.getitem
    check_rule(get, lambda x, i: x[i], x, rows)
    check_rule(lambda to, x, i: get(to, x, (slice(None), i)), lambda x, i: x[:, i], x, columns)
    check_rule(lambda to, x, i: get(to, x, (slice(1, 3), i, ...)), lambda x, i: x[1:3, i], x, columns)
    check_rule(lambda to, x, i, j: get(to, x, (i, j)), lambda x, i, j: x[i, j], x, rows, columns)
    check_rule(lambda to, x, i, j: get(to, x, (i, slice(0, 2), j)), lambda x, i, j: x[i, :2, j], x, rows, columns)
    check_rule(lambda to, x, i: rearrange.index_select(to, x, -2, i), lambda x, i: x.index_select(1, i), x, columns)
    check_rule(
        lambda to, x, i: rearrange.gather(to, x, -1, index=i),
        lambda x, i: x.gather(2, i),
        *(x, torch.randint(0, 4, (T, 5, N, 2))),
    )


VALUE, NUMBER, MASK = torch.zeros(3, 4), torch.zeros(()), torch.zeros(3, dtype=torch.bool)
REFUSED = {
    "such as a mask": lambda to, v, n, m: shapes.getitem(to, v, m),
    "beside numbers or None": lambda to, v, n, m: shapes.getitem(to, v, (None, m)),
    "mode='reflect'": lambda to, v, n, m: rearrange.pad(to, v, (1, 1), "reflect"),
    "repeat_interleave by a tensor": lambda to, v, n, m: rearrange.repeat_interleave(to, v, m, 0),
    "a value without dimensions": lambda to, v, n, m: rearrange.flip(to, n, 0),
    "as torch.float64": lambda to, v, n, m: rearrange.cumsum(to, v, 0, dtype=torch.float64),
    "stack of several dtypes": lambda to, v, n, m: rearrange.stack(to, (v, m)),
    "selection by torch.bool": lambda to, v, n, m: rearrange.index_select(to, v, 0, m),
    "not a plain number": lambda to, v, n, m: shapes.reshape(to, v, n),
    "view by dtype": lambda to, v, n, m: shapes.reshape(to, v, torch.int32),
    "transpose of a vector": lambda to, v, n, m: rearrange.matrix_transpose(to, m),
    "triangle of a vector": lambda to, v, n, m: rearrange.triu(to, m),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_calls_that_are_not_known(reason):
    to = Sketch()
    with pytest.raises(NotKnown, match=reason.replace(".", r"\.")):
        REFUSED[reason](to, *(to.slot(x) for x in (VALUE, NUMBER, MASK)))
