"""Transposed convolution in every setting."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from op_harness import check_op, randn
from rules import Sketch, check_rule

from fastmeta.ops.conv_transpose2d import ConvTranspose2d
from fastmeta.program.lowering import NotKnown, layers

T, N = 3, 2
SETTINGS = {
    "plain": (),
    "stride": ((2, 3),),
    "padding": ((2, 1), (1, 0)),
    "output padding": ((2, 2), (1, 1), (1, 0)),
    "dilation": ((1, 2), (0, 1), (0, 0), (2, 1)),
    "groups": ((2, 2), (0, 0), (0, 0), (1, 1), 2),
}


def plain(op):
    return lambda x, w, b=None: F.conv_transpose2d(
        x, w, b, op.stride, op.padding, op.output_padding, op.groups, op.dilation
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SETTINGS)
def test_sweeps(name):
    op = ConvTranspose2d(*SETTINGS[name])
    x, w = randn(T, N, 4, 3, 5), randn(T, 4, 6 // op.groups, 3, 2)
    check_op(op, plain(op), x, w, randn(T, 6))
    check_op(op, plain(op), x, w)


def test_the_rule():
    rule = lambda to, *v: layers.conv_transpose2d(to, *v, stride=2, padding=1, output_padding=(1, 0), groups=2)  # noqa: E731
    plain = lambda *v: F.conv_transpose2d(*v, stride=2, padding=1, output_padding=(1, 0), groups=2)  # noqa: E731
    check_rule(rule, plain, randn(T, N, 4, 3, 5), randn(T, 4, 3, 3, 3), randn(T, 6))
    to = Sketch()
    with pytest.raises(NotKnown, match="unbatched"):
        layers.conv_transpose2d(to, to.slot(randn(4, 3, 5)), to.slot(randn(4, 3, 3, 3)))
