"""The loop that a user would write: one task at a time, `functional_call` and `torch.autograd.grad`, nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from meta_steps import Batch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import fastmeta

LEARNERS = {"maml": fastmeta.MAML, "fomaml": fastmeta.FOMAML, "reptile": fastmeta.Reptile}


class Truth(NamedTuple):
    """Task losses [T], the mean meta-gradient by name, and the mean gradients of what else was asked for."""

    losses: Tensor
    grads: dict[str, Tensor]
    extra: list[Tensor]


def call(module: nn.Module, params: dict[str, Tensor], x: Any) -> Any:
    """The module's output under `params`; buffers are copies."""
    state = {**params, **{name: b.clone() for name, b in module.named_buffers()}}
    args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
    with sdpa_kernel(SDPBackend.MATH):
        return functional_call(module, state, args, kwargs)


def plain_loop(
    module: nn.Module, loss: Callable[..., Tensor], batch: Batch, *, algorithm: str = "maml",
    outer_loss: Callable[..., Tensor] | None = None, lr: float = 0.1, steps: int = 2, extra: Sequence[Tensor] = (),
) -> Truth:  # fmt: skip
    """Of plain gradient descent with step size `lr`."""
    exact = algorithm == "maml"
    theta = {name: p for name, p in module.named_parameters() if p.requires_grad}
    grads = {name: torch.zeros_like(p) for name, p in theta.items()}
    more, losses = [torch.zeros_like(p) for p in extra], []
    tasks = pytree.tree_leaves(batch.support_x)[0].shape[0]

    def own(phi: dict[str, Tensor]) -> dict[str, Tensor]:
        # an embedding with max_norm writes into its weights: each task and the query pass have copies
        if exact:
            return {name: p.clone() for name, p in phi.items()}
        return {name: p.detach().clone().requires_grad_() for name, p in phi.items()}

    for t in range(tasks):
        support_x, support_y, query_x, query_y = pytree.tree_map_only(Tensor, lambda x: x[t], tuple(batch))  # noqa: B023
        phi = start = own(theta)
        for _ in range(steps):
            value = loss(call(module, phi, support_x), support_y)
            g = torch.autograd.grad(value, list(phi.values()), create_graph=exact, materialize_grads=True)
            phi = {name: p - lr * d for (name, p), d in zip(phi.items(), g, strict=True)}
            phi = phi if exact else {name: p.detach().requires_grad_() for name, p in phi.items()}
        at_query = own(phi)
        value = (outer_loss or loss)(call(module, at_query, query_x), query_y)
        losses.append(value.detach())
        if algorithm == "reptile":
            found = [start[name].detach() - phi[name].detach() for name in theta]
        else:
            leaves = [*(theta if exact else at_query).values(), *extra]
            found = torch.autograd.grad(value, leaves, materialize_grads=True)
        for total, d in zip([*grads.values(), *more], found, strict=False):
            total.add_(d, alpha=1 / tasks)
    return Truth(torch.stack(losses), grads, more)


def agrees(
    module: nn.Module, loss: Callable[..., Tensor], batch: Batch, *, algorithm: str = "maml", rtol: float = 1e-10,
    truth: Truth | None = None, backend: str = "reference", **options: Any,
) -> fastmeta.MetaOutput:  # fmt: skip
    """Asserts that a learner gives the loop's losses and meta-gradient, and gives back what it gave."""
    if truth is None:
        truth = plain_loop(copy.deepcopy(module), loss, batch, algorithm=algorithm)
    module.zero_grad()
    options = {"inner_loss": loss, "inner_optimizer": fastmeta.SGD(lr=0.1), "inner_steps": 2, **options}
    out = LEARNERS[algorithm](module, backend=backend, **options)(*batch)
    out.loss.backward()
    assert out.finite.all()
    torch.testing.assert_close(out.task_losses.detach(), truth.losses, rtol=rtol, atol=rtol)
    whole = torch.cat([g.flatten().abs() for g in truth.grads.values()]).max()
    assert whole > 1e-4
    named = dict(module.named_parameters())
    for name, expected in truth.grads.items():
        got = named[name].grad
        if got is None:
            assert not expected.any(), name
            continue
        got = got.to_dense()
        assert got.dtype == expected.dtype, name
        torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol * float(whole))
    return out
