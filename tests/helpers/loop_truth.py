"""What a user would write without fastmeta: a loop over tasks with torch.autograd. It shares no code with fastmeta.

Every call of the network runs a fresh copy of it that holds the fast weights, and the loss is made for that copy, so
that whatever a forward leaves in an attribute or writes into a buffer, and whatever a loss reads of the network, is
that of this very call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

MakeLoss = Callable[[nn.Module], Callable[[Any, Any], torch.Tensor]]


@dataclass(frozen=True)
class Rule:
    """An inner optimiser, in the words of torch.optim."""

    kind: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 0.1


@dataclass(frozen=True)
class Loop:
    """How the loop goes. `order` is "exact", "first" or "reptile"; only names with the prefix `adapts` move."""

    order: str = "exact"
    steps: int = 2
    rule: Rule = Rule()
    batch: int | None = None
    clip: float | None = None
    adapts: str = ""


class Truth(NamedTuple):
    """Task losses [T], a task's outputs each, and the mean meta-gradient by name; of other tensors in `extra`."""

    losses: torch.Tensor
    outputs: list[Any]
    grads: dict[str, torch.Tensor]
    extra: list[torch.Tensor]


class PlainLoop:
    """The loop for a network.

    Args:
        make: makes the network, with the same weights each time.
        inner_loss, outer_loss: make the loss for a network; a loss takes outputs and targets of one task.
        extra: other tensors that are learned, such as a loss's own parameters.
    """

    def __init__(
        self, make: Callable[[], nn.Module], inner_loss: MakeLoss, outer_loss: MakeLoss, loop: Loop,
        extra: Sequence[torch.Tensor] = (),
    ) -> None:  # fmt: skip
        self.make, self.inner_loss, self.outer_loss, self.loop, self.extra = make, inner_loss, outer_loss, loop, extra
        self.theta = {n: p for n, p in make().named_parameters() if p.requires_grad}

    def __call__(self, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Truth:
        tasks = pytree.tree_leaves(query_x)[0].shape[0]
        total = {n: torch.zeros_like(p) for n, p in self.theta.items()}
        extra = [torch.zeros_like(p) for p in self.extra]
        losses, outputs = [], []
        with sdpa_kernel(SDPBackend.MATH):
            for t in range(tasks):
                loss, out, grads, more = self._task(
                    *(_pick(tree, t) for tree in (support_x, support_y, query_x, query_y))
                )
                losses.append(loss)
                outputs.append(out)
                for n, g in grads.items():
                    total[n] += g / tasks
                for sum_of_tasks, g in zip(extra, more, strict=True):
                    sum_of_tasks.add_(g / tasks)
        return Truth(torch.stack(losses), outputs, total, extra)

    def _task(self, sx: Any, sy: Any, qx: Any, qy: Any) -> tuple[Any, Any, dict[str, torch.Tensor], list[torch.Tensor]]:
        exact = self.loop.order == "exact"
        phi, state = dict(self.theta), {}
        for k in range(self.loop.steps):
            if not exact:
                phi = {n: p.detach().requires_grad_() for n, p in phi.items()}
            phi, state = self._step(phi, state, k, sx, sy)
        if not exact:
            phi = {n: p.detach().requires_grad_() for n, p in phi.items()}
        net = self._with(phi)
        out = _call(net, qx)
        loss = self.outer_loss(net)(out, qy)
        if self.loop.order == "reptile":
            grads = [self.theta[n].detach() - phi[n].detach() for n in phi]
            more = [torch.zeros_like(p) for p in self.extra]
        else:
            of = [*(self.theta if exact else phi).values(), *self.extra]
            grads = torch.autograd.grad(loss, of, materialize_grads=True, allow_unused=True)
            more = list(grads[len(phi) :])
        plain = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, out)
        return loss.detach(), plain, {n: g.detach() for n, g in zip(phi, grads, strict=False)}, more

    def _step(
        self, phi: dict[str, torch.Tensor], state: dict[str, Any], k: int, sx: Any, sy: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        if self.loop.batch is not None:
            index = [(k * self.loop.batch + i) % pytree.tree_leaves(sx)[0].shape[0] for i in range(self.loop.batch)]
            sx, sy = _pick(sx, index), _pick(sy, index)
        net = self._with(phi)
        loss = self.inner_loss(net)(_call(net, sx), sy)
        fast = [n for n in phi if n.startswith(self.loop.adapts)]
        grads = torch.autograd.grad(
            loss, [phi[n] for n in fast], create_graph=self.loop.order == "exact", materialize_grads=True,
            allow_unused=True,
        )  # fmt: skip
        if self.loop.clip is not None:
            norm = torch.cat([g.reshape(-1) for g in grads]).norm()
            grads = [g * (self.loop.clip / (norm + 1e-6)).clamp(max=1.0) for g in grads]
        new, states = dict(phi), {}
        for n, g in zip(fast, grads, strict=True):
            new[n], states[n] = _update(self.loop.rule, phi[n], g, state.get(n), k)
        return new, states

    def _with(self, phi: dict[str, torch.Tensor]) -> nn.Module:
        """A fresh network that holds `phi`, tied parameters as often as they are tied."""
        net = self.make()
        tied: dict[int, str] = {id(p): n for n, p in net.named_parameters()}
        for owner in [*net.modules()]:
            for key, p in [*owner._parameters.items()]:
                if p is not None and tied[id(p)] in phi:
                    owner._parameters[key] = phi[tied[id(p)]]
            if isinstance(owner, nn.RNNBase):
                owner._flat_weights = [owner._parameters[n] for n in owner._flat_weights_names]
        return net


def _update(rule: Rule, p: torch.Tensor, g: torch.Tensor, state: Any, k: int) -> tuple[torch.Tensor, Any]:
    if rule.kind == "adam":
        m, v = state or (torch.zeros_like(p), torch.zeros_like(p))
        m = rule.betas[0] * m + (1 - rule.betas[0]) * g
        v = rule.betas[1] * v + (1 - rule.betas[1]) * g * g
        m_hat, v_hat = m / (1 - rule.betas[0] ** (k + 1)), v / (1 - rule.betas[1] ** (k + 1))
        root = torch.where(v_hat > 0, torch.where(v_hat > 0, v_hat, 1.0).sqrt(), 0.0)  # the root has no slope at zero
        return p - rule.lr * m_hat / (root + rule.eps), (m, v)
    g = g + rule.weight_decay * p
    if not rule.momentum:
        return p - rule.lr * g, None
    b = g if state is None else rule.momentum * state + g
    return p - rule.lr * (g + rule.momentum * b if rule.nesterov else b), b


def _call(net: nn.Module, x: Any) -> Any:
    if isinstance(x, dict):
        return net(**x)
    return net(*x) if isinstance(x, tuple | list) else net(x)


def _pick(tree: Any, index: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda x: x[index], tree)
