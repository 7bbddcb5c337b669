"""The truth: one task at a time, plain autograd through the unrolled inner loop, any module, any dtype.

Shares no code with the engine, so that either can be held against the other; slow, and as close to the
equations as PyTorch allows. With L_s a task's support loss and φ_0 = θ, the inner loop is
φ_{k+1} = step(φ_k, ∇L_s(φ_k)); its gradients keep their graph (`create_graph`), so whatever is computed from
φ_K differentiates exactly back to θ (Finn et al. 2017, equation 1), through the inner optimiser's state too, and to
whatever else the losses read that requires grad, the parameters of a learned loss among it.

A module's input may be a tensor, or a tuple (positional arguments) or dict (keyword arguments) of tensors. While a
loss runs, the module holds the fast weights that its outputs came from, and the attributes that forward left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmeta.internals import pytree
from fastmeta.stateless import Stateless, stacked

Tree = Any  # a tensor, or a tuple or dict of tensors
Loss = Callable[[Any, Any], Tensor]
State = tuple[Tensor, ...]
Named = Mapping[str, Tensor]
# all parameters' φ and g, state, k, the support loss of the step → φ, state
Update = Callable[[Named, Named, Any, int, Tensor], tuple[dict[str, Tensor], Any]]


def adapt(
    module: nn.Module,
    *,
    inner_loss: Loss,
    inner_optimizer: Any,
    steps: int,
    support_x: Tree,
    support_y: Tree,
    inner_batch_size: int | None = None,
    first_order: bool = False,
    variant: Variant | None = None,
) -> dict[str, Tensor]:
    """Fast weights φ_K of every task, after `steps` steps of the inner optimiser on the task's support set.

    Args:
        module: holds θ. Parameters with `requires_grad=False` are constants; buffers are read, never written.
        inner_loss: (outputs, targets) of one task → 0-dim tensor.
        inner_optimizer: an `SGD` or `Adam` configuration of fastmeta; semantics of `torch.optim`.
        steps: K; 0 gives θ itself.
        support_x: inputs [T, N, ...].
        support_y: targets [T, N, ...], or None.
        inner_batch_size: B; step k then sees the samples (k B + i) mod N, i < B. None: all N.
        first_order: treat φ_K - θ as a constant, so that ∂φ_K/∂θ is the identity (first-order MAML).
        variant: what differs from plain MAML.

    Returns:
        {name: [T, *shape]} for each trainable parameter, tied ones once, under their first name.
        Differentiable in θ where gradients are enabled; under `torch.no_grad` the inner loop still runs, and
        leaves no graph.

    Raises:
        TypeError: the inner optimiser is of another kind, or the loss returns no tensor.
        ValueError: the loss is no scalar, or depends on no trainable parameter.
    """
    learners = run_tasks(
        module, inner_loss=inner_loss, inner_optimizer=inner_optimizer, steps=steps, support_x=support_x,
        support_y=support_y, inner_batch_size=inner_batch_size, first_order=first_order, variant=variant,
    )  # fmt: skip
    return {name: torch.stack([learner.phi[name] for learner in learners]) for name in learners[0].phi}


@dataclass(frozen=True)
class Variant:
    """What an inner loop may have beyond plain MAML's; every default is MAML.

    Attributes:
        start: φ_0 by name, [*shape] for all tasks or with `own_start` [T, *shape]; what it does not name is shared by
            all tasks and moved by none. None: all trainable parameters as they are.
        rate: (name, k) → step size of step k, a tensor that broadcasts to the parameter. None: the optimiser's `lr`.
        update: another rule than SGD and Adam: (φ, g, state, k, support loss) → (φ, state), the state None at first.
        clip_norm: largest norm of a task's gradient, as `torch.nn.utils.clip_grad_norm_` has it.
        proximal: c of c/2 ‖φ − φ_0‖², added to the support loss.
        constant_gradients: differentiate through the update, but not through inner gradients.
        first: steps that the loop went already, which count for `rate`, Adam and inner batches.
        states: the optimiser's after them, one a task.
    """

    start: Mapping[str, Tensor] | None = None
    own_start: bool = False
    rate: Callable[[str, int], Tensor] | None = None
    update: Update | None = None
    clip_norm: float | None = None
    proximal: float = 0.0
    constant_gradients: bool = False
    first: int = 0
    states: Sequence[Any] | None = None


@dataclass(frozen=True)
class Outer:
    """The query set, and what is asked of it.

    Attributes:
        loss: (outputs, targets) of one task → 0-dim tensor.
        weights: of the query losses at φ_0 … φ_K; the outputs are those at φ_K.
    """

    loss: Loss
    query_x: Tree
    query_y: Tree
    weights: Sequence[float]
    bn_statistics: str = "batch"


class Learner(NamedTuple):
    """One task after its inner loop."""

    start: dict[str, Tensor]  # φ_0
    phi: dict[str, Tensor]  # φ_K
    state: Any  # of the optimiser
    loss: Tensor | None  # weighted query losses; None where no query set came
    outputs: Tree  # on the query set


def run_tasks(
    module: nn.Module, *, inner_loss: Loss, inner_optimizer: Any, steps: int, support_x: Tree, support_y: Tree,
    inner_batch_size: int | None = None, first_order: bool = False, variant: Variant | None = None,
    outer: Outer | None = None,
) -> list[Learner]:  # fmt: skip
    """As `adapt`, task by task; with `outer` each task's query loss too, at its own fast weights."""
    variant = Variant() if variant is None else variant
    theta = variant.start
    if theta is None:
        theta = {name: p for name, p in module.named_parameters() if p.requires_grad}
    differentiable = torch.is_grad_enabled()
    call = Stateless(module, inner_loss, None if outer is None else outer.loss)
    descend = _Descent(
        call, inner_loss, variant.update or _update_rule(inner_optimizer, variant.rate), steps, inner_batch_size,
        differentiable, first_order, variant,
    )  # fmt: skip
    wanted = [] if outer is None else [k for k, w in enumerate(outer.weights) if w or k == steps]
    learners = []
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable), call.running(twice=descend.exact):
        support_x, support_y = _for_autograd(support_x), _for_autograd(support_y)
        if outer is not None:
            outer = replace(outer, query_x=_for_autograd(outer.query_x), query_y=_for_autograd(outer.query_y))
        for t in range(_tasks(support_x)):
            start = call.own({name: p[t] if variant.own_start else p for name, p in theta.items()})
            state = None if variant.states is None else variant.states[t]
            x = _select(support_x, t)
            with torch.enable_grad():
                phis, state = descend(start, state, x, _select(support_y, t), {*wanted, steps})
            loss, outputs = None, None
            if outer is not None:
                loss, outputs = _query(call, phis, wanted, outer, x, t)
            learners.append(Learner(start, phis[steps], state, loss, outputs))
    return learners


def _query(
    call: Stateless, phis: Mapping[int, dict[str, Tensor]], wanted: Sequence[int], outer: Outer, support_x: Tree, t: int
) -> tuple[Tensor, Tree]:
    """The weighted query losses of task t, and its outputs at φ_K."""
    x, y = _select(outer.query_x, t), _select(outer.query_y, t)
    total: Tensor | None = None
    outputs: Tree = None
    for k in wanted:
        with call.under(call.own(phis[k])):
            outputs = call(x, support_x=support_x if outer.bn_statistics == "support" else None)
            loss = _scalar("outer_loss", outer.loss(outputs, y))
        weight = outer.weights[k]
        if weight:
            loss = loss if weight == 1.0 else weight * loss
            total = loss if total is None else total + loss
    assert total is not None, "some query loss counts"
    return total, outputs


def apply(
    module: nn.Module, params: Mapping[str, Tensor], x: Tree, *, support_x: Tree = None, bn_statistics: str = "batch"
) -> Tree:
    """Outputs of every task's own network on its own inputs.

    Args:
        module: gives the architecture, the constants and the buffers (read, never written).
        params: {name: [T, *shape]}, as `adapt` returns them.
        x: inputs [T, M, ...].
        support_x: inputs [T, N, ...]; read only with bn_statistics="support".
        bn_statistics: "batch" leaves batch norm as the module has it. "support": a batch norm that would use
            the statistics of its batch uses those of the task's support set at the same fast weights instead
            (mean and biased variance, differentiable), as if only the first N rows of cat([support, query])
            counted.

    Returns:
        The module's output structure, every tensor [T, M, ...]; differentiable in `params`.

    Raises:
        ValueError: unknown `bn_statistics`, or "support" without `support_x`.
        RuntimeError: the module normalises query and support by a different number of batch-norm calls.
    """
    if bn_statistics not in ("batch", "support"):
        raise ValueError(f'bn_statistics must be "batch" or "support", got {bn_statistics!r}')
    if bn_statistics == "support" and support_x is None:
        raise ValueError('bn_statistics="support" needs support_x, got None; pass the support inputs [T, N, ...]')
    return stacked(task_outputs(module, params, x, support_x=support_x if bn_statistics == "support" else None))


def task_outputs(
    module: nn.Module, params: Mapping[str, Tensor], x: Tree, *, support_x: Tree = None,
    differentiable: Sequence[bool] | None = None,
) -> list[Tree]:  # fmt: skip
    """As `apply`, of each task; `support_x` stands for bn_statistics="support".

    Tasks that `differentiable` does not name have no graph.
    """
    call = Stateless(module)
    outputs = []
    with call.running(twice=False):
        for t in range(_tasks(x)):
            phi = call.own({name: p[t] for name, p in params.items()})
            quiet = differentiable is not None and not differentiable[t]
            with torch.no_grad() if quiet else nullcontext(), call.under(phi):
                outputs.append(call(_select(x, t), support_x=_select(support_x, t)))
    return outputs


def task_losses(loss: Loss, outputs: Tree, targets: Tree) -> Tensor:
    """The loss of each task, [T], of outputs [T, M, ...] and targets [T, M, ...] (or None).

    Raises:
        TypeError, ValueError: the loss returns no tensor, or no scalar.
    """
    tasks = _tasks(outputs)
    return torch.stack([_scalar("loss", loss(_select(outputs, t), _select(targets, t))) for t in range(tasks)])


# The inner loop of one task.


@dataclass(frozen=True)
class _Descent:
    """φ_0, support set → φ_k for each k asked for; where `differentiable`, with their graph back to θ, rates and data.

    With `first_order` ∂φ_{k+1}/∂φ_k is the identity; what the update itself learns keeps its derivative, and what the
    inner loss learns has none, as it reaches φ_K through inner gradients alone.
    """

    call: Stateless
    loss: Loss
    update: Update
    steps: int
    batch: int | None
    differentiable: bool
    first_order: bool
    variant: Variant

    @property
    def exact(self) -> bool:
        """Whether inner gradients are differentiated again."""
        return self.differentiable and not self.first_order and not self.variant.constant_gradients

    def __call__(
        self, start: dict[str, Tensor], state: Any, x: Tree, y: Tree, asked: set[int]
    ) -> tuple[dict[int, dict[str, Tensor]], Any]:
        straight, exact = self.first_order or not self.differentiable, self.exact
        phi = {name: p.detach() for name, p in start.items()} if straight else start
        learned: dict[str, Tensor] = {}  # zeros with the graph of what first-order updates learn
        found = {0: self.linked(start, phi, learned) if straight else phi} if 0 in asked else {}
        for i in range(self.steps):
            k = self.variant.first + i
            here = phi if exact else {name: p.detach().requires_grad_() for name, p in phi.items()}
            grads, loss = self.gradients(here, start, *self.samples(k, x, y), keep=exact)
            phi, state = self.update(phi, grads, state, k, loss if exact else loss.detach())
            if straight:
                learned |= {n: p - p.detach() + learned.get(n, 0.0) for n, p in phi.items() if p.requires_grad}
                phi = {name: p.detach() for name, p in phi.items()}
            if i + 1 in asked:
                found[i + 1] = self.linked(start, phi, learned) if straight else phi
        return found, state

    def linked(self, start: Named, phi: dict[str, Tensor], learned: Named) -> dict[str, Tensor]:
        """First-order fast weights, of which φ_0 has the identity as derivative."""
        if not self.differentiable:
            return phi
        linked = {name: p + (start[name] - start[name].detach()) for name, p in phi.items()}
        return linked | {name: linked[name] + zero for name, zero in learned.items()}

    def samples(self, k: int, x: Tree, y: Tree) -> tuple[Tree, Tree]:
        if self.batch is None:
            return x, y
        index = (k * self.batch + torch.arange(self.batch)) % _tasks(x)
        return _select(x, index), _select(y, index)

    def gradients(self, phi: Named, start: Named, x: Tree, y: Tree, *, keep: bool) -> tuple[dict[str, Tensor], Tensor]:
        with self.call.under(phi):
            total = loss = _scalar("inner_loss", self.loss(self.call(x), y))
            if not loss.requires_grad:
                raise ValueError(
                    "inner_loss depends on no trainable parameter, so there is nothing to adapt; check that "
                    "neither the module nor the loss detaches its result"
                )
            if self.variant.proximal:
                total = loss + self.variant.proximal / 2 * sum(_square(p - start[name]) for name, p in phi.items())
            grads = torch.autograd.grad(total, list(phi.values()), create_graph=keep, materialize_grads=True)
        if self.variant.clip_norm is not None:
            # a norm of exactly zero has no derivative; such a gradient is not clipped either
            square = torch.stack([_square(g) for g in grads]).sum()
            norm = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
            scale = (self.variant.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            grads = [g * scale.to(g.real.dtype) for g in grads]
        return dict(zip(phi, grads, strict=True)), loss


def _update_rule(optimizer: Any, rate: Callable[[str, int], Tensor] | None) -> Update:
    kind = type(optimizer).__name__
    rules = {"SGD": _sgd, "Adam": _adam}
    if kind not in rules:
        raise TypeError(f"inner_optimizer must be fastmeta.SGD or fastmeta.Adam, got {kind}")

    def update(phi: Named, grads: Named, state: Any, k: int, _: Tensor) -> tuple[dict[str, Tensor], Any]:
        state = dict.fromkeys(phi, ()) if state is None else state
        moved = {
            name: rules[kind](
                optimizer, optimizer.lr if rate is None else rate(name, k), p, grads[name], state[name], k
            )
            for name, p in phi.items()
        }
        return {name: p for name, (p, _) in moved.items()}, {name: s for name, (_, s) in moved.items()}

    return update


def _sgd(opt: Any, lr: Any, p: Tensor, g: Tensor, state: State, _: int) -> tuple[Tensor, State]:
    """torch.optim.SGD with dampening 0: b ← μ b + d, then along d + μ b (Nesterov) or b."""
    d = g + opt.weight_decay * p if opt.weight_decay else g
    if not opt.momentum:
        return p - lr * d, ()
    b = opt.momentum * state[0] + d if state else d
    direction = d + opt.momentum * b if opt.nesterov else b
    return p - lr * direction, (b,)


def _adam(opt: Any, lr: Any, p: Tensor, g: Tensor, state: State, k: int) -> tuple[Tensor, State]:
    """Kingma & Ba 2015, algorithm 1: eps stands outside the root of the bias-corrected second moment.

    A complex number counts as two real ones, as in torch.optim.Adam.
    """
    if p.is_complex():
        parts = tuple(torch.view_as_real(s) for s in state)
        moved, parts = _adam(opt, lr, torch.view_as_real(p), torch.view_as_real(g.resolve_conj()), parts, k)
        return torch.view_as_complex(moved), tuple(torch.view_as_complex(s) for s in parts)
    beta1, beta2 = opt.betas
    m, v = state or (torch.zeros_like(p), torch.zeros_like(p))
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1 ** (k + 1)), v / (1 - beta2 ** (k + 1))
    # The root's slope at 0 is infinite and would turn a zero cotangent into NaN: keep 0 away from it, twice.
    positive = v_hat > 0
    root = torch.where(positive, torch.where(positive, v_hat, 1.0).sqrt(), 0.0)
    return p - lr * m_hat / (root + opt.eps), (m, v)


def _square(x: Tensor) -> Tensor:
    """‖x‖²."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).square().sum()


# Data of one task.


def _select(tree: Tree, index: int | Tensor) -> Tree:
    if isinstance(tree, Tensor) or tree is None:
        return tree if tree is None else tree[index]
    return pytree.tree_map_only(Tensor, lambda leaf: leaf[index], tree)


def _tasks(tree: Tree) -> int:
    """Length of the first tensor in `tree`."""
    if isinstance(tree, Tensor):
        return tree.shape[0]
    return next(leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)).shape[0]


def _for_autograd(tree: Tree) -> Tree:
    """Tensors made under `torch.inference_mode` as copies that autograd accepts."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.clone() if leaf.is_inference() else leaf, tree)


def _scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a 0-dim tensor for each task, got {type(value).__name__}")
    if value.dim():
        raise ValueError(
            f"{name} must return a scalar for each task, got a tensor of shape {list(value.shape)}; "
            "reduce it over the samples, for instance with .mean()"
        )
    return value
