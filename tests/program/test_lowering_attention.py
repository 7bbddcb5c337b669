"""Rules of softmax, matrix products and attention against PyTorch's own functions, in all four sweeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_harness import randn
from rules import Sketch, check_rule
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmeta.program.lowering import NotKnown, attention

T, N = 2, 5

PRODUCTS = [
    ((N, 4), (4, 7)),
    ((4,), (4,)),
    ((N, 4), (4,)),
    ((4,), (4, 7)),
    ((2, N, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((2, 3, N, 4), (4, 7)),
    ((2, N, 4), (3, 1, 4, 7)),
]


@pytest.mark.parametrize("x, other", PRODUCTS, ids=str)
def test_matmul(x, other):
    check_rule(attention.matmul, torch.matmul, randn(T, *x), randn(T, *other))


@pytest.mark.parametrize("x", [(3,), (N, 3), (N, 1), (1,), (1, 1)], ids=str)
def test_addmm(x):
    inputs = randn(T, *x), randn(T, N, 4), randn(T, 4, 3)
    check_rule(attention.addmm, torch.addmm, *inputs)
    check_rule(
        lambda to, *s: attention.addmm(to, *s, beta=0.5, alpha=-2),
        lambda *s: torch.addmm(*s, beta=0.5, alpha=-2),
        *inputs,
    )


def test_addmm_without_its_first_argument():
    x, mat1, mat2 = randn(T, 3), randn(T, N, 4), randn(T, 4, 3)
    check_rule(
        lambda to, a, b: attention.addmm(to, to.constant(x[0] * torch.nan), a, b, beta=0, alpha=3),
        lambda a, b: 3 * a @ b,
        *(mat1, mat2),
    )


def test_baddbmm():
    check_rule(
        lambda to, *s: attention.baddbmm(to, *s, beta=0.5, alpha=-2),
        lambda *s: torch.baddbmm(*s, beta=0.5, alpha=-2),
        *(randn(T, 2, N, 3), randn(T, 2, N, 4), randn(T, 2, 4, 3)),
    )


def test_softmax_in_every_form():
    x = randn(T, N, 4)
    check_rule(lambda to, x: attention.softmax(to, x, 0), lambda x: x.softmax(0), x)
    check_rule(lambda to, x: attention.softmax_function(to, x, dim=-1), lambda x: F.softmax(x, -1), x)
    check_rule(lambda to, x: attention.softmin_function(to, x, dim=-1), lambda x: F.softmin(x, -1), x)
    check_rule(lambda to, x: attention.log_softmax_function(to, x, -1), lambda x: F.log_softmax(x, -1), x)
    check_rule(lambda to, x: attention.logsumexp(to, x, (0, -1)), lambda x: x.logsumexp((0, 1)), x)


@pytest.mark.parametrize(
    "equation, x, w",
    [
        ("bhnd,bhmd->bhnm", (2, 3, N, 4), (2, 3, 7, 4)),
        ("nd, de", (N, 4), (4, 3)),
        ("nd,ed->n", (N, 4), (3, 4)),
        ("i,j->ji", (N,), (4,)),
        ("ij,ij->", (N, 4), (N, 4)),
        ("ijk,kl->lj", (N, 1, 4), (4, 3)),
    ],
)
def test_einsum(equation, x, w):
    plain = lambda x, w: torch.einsum(equation, x, w)  # noqa: E731
    check_rule(lambda to, x, w: attention.einsum(to, equation, x, w), plain, randn(T, *x), randn(T, *w))
    check_rule(lambda to, x, w: attention.einsum(to, equation, (x, w)), plain, randn(T, *x), randn(T, *w))


def test_einsum_of_one_tensor():
    for equation in ("ijk->ki", "ijk->kji", "kij"):
        plain = lambda x, e=equation: torch.einsum(e, x)  # noqa: E731
        check_rule(lambda to, x, e=equation: attention.einsum(to, e, x), plain, randn(T, N, 3, 4))


@pytest.mark.parametrize("equation", ["...i,i", "ii,ij", "ij,jk,kl->il", "ij,kj->Z", "ijk,kl->il", "ij,jk->ik"])
def test_einsum_that_is_not_known(equation):
    to = Sketch()
    slots = [to.slot(torch.zeros(3, 4)) for _ in equation.split("->")[0].split(",")]
    slots[1] = to.slot(torch.zeros(1, 4))
    with pytest.raises(NotKnown, match="einsum"):
        attention.einsum(to, equation, *slots)


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "float": {"attn_mask": (1, 1, N, 7)},
    "float of fewer dimensions": {"attn_mask": (N, 7)},
    "bool": {"attn_mask": (2, 1, 1, 7), "bool": True},
}


@pytest.mark.parametrize("name", MASKS)
def test_attention(name):
    options = dict(MASKS[name])
    shape, as_bool = options.pop("attn_mask", None), options.pop("bool", False)
    masks = () if shape is None else ((randn(T, *shape) < 1) if as_bool else randn(T, *shape),)

    def plain(*inputs):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(*inputs, **options)

    check_rule(
        lambda to, *slots: attention.scaled_dot_product_attention(to, *slots, **options),
        plain,
        *(randn(T, 2, 3, N, 4), randn(T, 2, 3, 7, 4), randn(T, 2, 3, 7, 6), *masks),
    )


def test_attention_of_groups_of_heads():
    def plain(*inputs):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(*inputs, enable_gqa=True)

    check_rule(
        lambda to, *slots: attention.scaled_dot_product_attention(to, *slots, enable_gqa=True),
        plain,
        *(randn(T, 2, 4, N, 3), randn(T, 2, 2, 7, 3), randn(T, 2, 1, 7, 5)),
    )


REFUSED = {
    "groups of heads": ({"enable_gqa": True}, (2, 4, N, 3), (2, 3, N, 3), None),
    "causal and has a mask": ({"is_causal": True}, (N, 3), (N, 3), torch.ones(N, N)),
    "mask in torch.float64": ({}, (N, 3), (N, 3), torch.ones(N, N, dtype=torch.float64)),
    "vectors": ({}, (3,), (N, 3), None),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_attention_that_is_not_known(reason):
    options, q, k, mask = REFUSED[reason]
    to = Sketch()
    slots = [to.slot(torch.zeros(shape)) for shape in (q, k, k)]
    given = None if mask is None else to.slot(mask)
    with pytest.raises(NotKnown, match=reason):
        attention.scaled_dot_product_attention(to, *slots, given, **options)


def test_softmax_that_is_not_known():
    to = Sketch()
    with pytest.raises(NotKnown, match=r"as torch\.float64"):
        attention.softmax(to, to.slot(torch.zeros(3)), 0, torch.float64)
    with pytest.raises(NotKnown, match="without dimensions"):
        attention.softmax(to, to.slot(torch.zeros(())), -1)
    with pytest.raises(NotKnown, match="without a dimension"):
        attention.softmax_function(to, to.slot(torch.zeros(3)))
