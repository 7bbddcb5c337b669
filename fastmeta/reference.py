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
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastmeta.implicit import Solver
from fastmeta.inner_step import check_inner_steps
from fastmeta.stateless import Stateless, one_behind_another, stacked
from fastmeta.trees import Tree, for_autograd, select, slice_of, tasks_of

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
        penalty: (φ, φ_0) → what is added to the support loss.
        implicit: (c, n): φ_K is differentiated as the minimum of support loss and c/2 ‖φ − φ_0‖², by n conjugate
            gradient steps (Rajeswaran et al. 2019), not through the loop.
        constant_gradients: differentiate through the update, but not through inner gradients.
        first: steps that the loop went already, which count for `rate`, Adam and inner batches.
        states: the optimiser's after them, one a task.
    """

    start: Mapping[str, Tensor] | None = None
    own_start: bool = False
    rate: Callable[[str, int], Tensor] | None = None
    update: Update | None = None
    clip_norm: float | None = None
    penalty: Callable[[Named, Named], Tensor] | None = None
    implicit: tuple[float, int] | None = None
    constant_gradients: bool = False
    first: int = 0
    states: Sequence[Any] | None = None


@dataclass(frozen=True)
class Outer:
    """The query set, and what is asked of it.

    Attributes:
        loss: (outputs, targets) of one task → 0-dim tensor.
        weights: of the query losses at φ_0 … φ_K; the outputs are those at φ_K.
        batch_size: query samples that count at φ_k, the k-th slice of so many, cyclically; None: all of them. The
            outputs are then those of every φ_k that counts, one behind another.
    """

    loss: Loss
    query_x: Tree
    query_y: Tree
    weights: Sequence[float]
    bn_statistics: str = "batch"
    batch_size: int | None = None


class Learner(NamedTuple):
    """One task after its inner loop."""

    start: dict[str, Tensor]  # φ_0
    phi: dict[str, Tensor]  # φ_K
    state: Any  # of the optimiser
    loss: Tensor | None  # weighted query losses; None where no query set came
    outputs: Tree  # on the query set
    solver: Solver | None = None  # of an implicit derivative


def run_tasks(
    module: nn.Module, *, inner_loss: Loss, inner_optimizer: Any, steps: int, support_x: Tree, support_y: Tree,
    inner_batch_size: int | None = None, first_order: bool = False, variant: Variant | None = None,
    outer: Outer | None = None,
) -> list[Learner]:  # fmt: skip
    """As `adapt`, task by task; with `outer` each task's query loss too, at its own fast weights."""
    variant = Variant() if variant is None else variant
    check_inner_steps(module, variant.first + steps)
    theta = variant.start
    if theta is None:
        theta = {name: p for name, p in module.named_parameters() if p.requires_grad}
    differentiable = torch.is_grad_enabled()
    call = Stateless(module, inner_loss, None if outer is None else outer.loss)
    update = variant.update or _update_rule(inner_optimizer, variant.rate)
    # what SGD and Adam add to φ depends on φ through the gradient alone, but for weight decay
    straight = first_order and bool(variant.update or getattr(inner_optimizer, "weight_decay", 0))
    descend = _Descent(
        call, inner_loss, update, steps, inner_batch_size, differentiable, first_order, straight, variant
    )  # fmt: skip
    wanted = [] if outer is None else [k for k, w in enumerate(outer.weights) if w or k == steps]
    learners = []
    twice = descend.exact or variant.implicit is not None
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable), call.running(twice=twice):
        support_x, support_y = for_autograd(support_x), for_autograd(support_y)
        query_x, query_y = (None, None) if outer is None else map(for_autograd, (outer.query_x, outer.query_y))
        for t in range(tasks_of(support_x)):
            start = call.own({name: p[t] if variant.own_start else p for name, p in theta.items()})
            state = None if variant.states is None else variant.states[t]
            x = select(support_x, t)
            with torch.enable_grad():
                phis, state, solver = descend(start, state, x, select(support_y, t), {*wanted, steps})
            loss, outputs = None, None
            if outer is not None:
                query = select(query_x, t), select(query_y, t)
                loss, outputs = _query(call, phis, wanted, outer, *query, x, variant.first)
            learners.append(Learner(start, phis[steps], state, loss, outputs, solver))
    return learners


def _query(
    call: Stateless, phis: Mapping[int, dict[str, Tensor]], wanted: Sequence[int], outer: Outer, x: Tree, y: Tree,
    support_x: Tree, first: int,
) -> tuple[Tensor, Tree]:  # fmt: skip
    """The weighted query losses of one task, and its outputs at φ_K; a module reads the inner step that led to φ_k."""
    total: Tensor | None = None
    every: list[Tree] = []
    for k in wanted:
        here_x, here_y = slice_of(x, y, outer.batch_size, k)
        with call.under(call.own(phis[k]), step=max(first + k - 1, 0)):
            outputs = call(here_x, support_x=support_x if outer.bn_statistics == "support" else None)
            loss = _scalar("outer_loss", outer.loss(outputs, here_y))
        every.append(outputs)
        if weight := outer.weights[k]:
            total = weight * loss if total is None else total + weight * loss
    assert total is not None, "some query loss counts"
    return total, every[-1] if outer.batch_size is None else one_behind_another(every)


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
    differentiable: Sequence[bool] | None = None, inner_step: int | None = None,
) -> list[Tree]:  # fmt: skip
    """As `apply`, of each task; `support_x` stands for bn_statistics="support".

    Tasks that `differentiable` does not name have no graph. A module that reads its inner step reads `inner_step`.
    """
    call = Stateless(module)
    outputs = []
    with call.running(twice=False):
        for t in range(tasks_of(x)):
            phi = call.own({name: p[t] for name, p in params.items()})
            quiet = differentiable is not None and not differentiable[t]
            with torch.no_grad() if quiet else nullcontext(), call.under(phi, step=inner_step):
                outputs.append(call(select(x, t), support_x=select(support_x, t)))
    return outputs


def task_losses(loss: Loss, outputs: Tree, targets: Tree) -> Tensor:
    """The loss of each task, [T], of outputs [T, M, ...] and targets [T, M, ...] (or None).

    Raises:
        TypeError, ValueError: the loss returns no tensor, or no scalar.
    """
    tasks = tasks_of(outputs)
    return torch.stack([_scalar("loss", loss(select(outputs, t), select(targets, t))) for t in range(tasks)])


# The inner loop of one task.


@dataclass(frozen=True)
class _Descent:
    """φ_0, support set → φ_k for each k asked for; where `differentiable`, with their graph back to θ, rates and data.

    With `first_order` inner gradients are constants and ∂φ_{k+1}/∂φ_k is the identity. What the update itself learns
    keeps its derivative, and what the inner loss learns has none, as it reaches φ_K through inner gradients alone.
    """

    call: Stateless
    loss: Loss
    update: Update
    steps: int
    batch: int | None
    differentiable: bool
    first_order: bool
    straight: bool  # the update's own derivative with respect to φ is replaced by the identity
    variant: Variant

    @property
    def exact(self) -> bool:
        """Whether inner gradients are differentiated again."""
        plain = not self.first_order and not self.variant.constant_gradients and self.variant.implicit is None
        return self.differentiable and plain

    def __call__(
        self, start: dict[str, Tensor], state: Any, x: Tree, y: Tree, asked: set[int]
    ) -> tuple[dict[int, dict[str, Tensor]], Any, Solver | None]:
        implicit = self.variant.implicit is not None and self.differentiable and self.steps > 0
        exact, linked = self.exact, self.differentiable and not implicit
        phi = start if linked else _detached(start)
        if exact:  # a start that nothing is learned of, such as zeros, is moved along gradients all the same
            phi = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in phi.items()}
        found = {0: phi} if 0 in asked else {}
        for i in range(self.steps):
            k = self.variant.first + i
            here = phi if exact else {name: p.detach().requires_grad_() for name, p in phi.items()}
            grads, loss = self.gradients(k, here, start, *slice_of(x, y, self.batch, k), keep=exact)
            base = _detached(phi) if self.straight else phi
            moved, state = self.update(base, grads, state, k, loss if exact else loss.detach())
            phi = {name: p + (phi[name] - base[name]) for name, p in moved.items()} if self.straight else moved
            if not linked:
                phi = _detached(phi)
            if i + 1 in asked:
                found[i + 1] = phi
        if not implicit:
            return found, state, None
        solver = self.solver(start, phi, x, y)
        return found | {self.steps: solver.linked()}, state, solver

    def solver(self, start: Named, phi: Named, x: Tree, y: Tree) -> Solver:
        """Of φ_K as the minimum of its objective."""
        strength, steps = cast("tuple[float, int]", self.variant.implicit)
        here = {name: p.detach().requires_grad_() for name, p in phi.items()}
        with self.call.under(here, step=self.variant.first + self.steps):
            loss = _scalar("inner_loss", self.loss(self.call(x), y))
            gradients = torch.autograd.grad(loss, list(here.values()), create_graph=True, materialize_grads=True)
        return Solver(here, gradients, start, strength=strength, steps=steps)

    def gradients(
        self, k: int, phi: Named, start: Named, x: Tree, y: Tree, *, keep: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        with self.call.under(phi, step=k):
            total = loss = _scalar("inner_loss", self.loss(self.call(x), y))
            if not loss.requires_grad:
                raise ValueError(
                    "inner_loss depends on no trainable parameter, so there is nothing to adapt; check that "
                    "neither the module nor the loss detaches its result"
                )
            if self.variant.penalty is not None:
                total = loss + self.variant.penalty(phi, start)
            grads = torch.autograd.grad(total, list(phi.values()), create_graph=keep, materialize_grads=True)
        if self.variant.clip_norm is not None:
            # a norm of exactly zero has no derivative; such a gradient is not clipped either
            square = torch.stack([_square(g) for g in grads]).sum()
            norm = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
            scale = (self.variant.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            grads = [g * scale.to(g.real.dtype) for g in grads]
        return dict(zip(phi, grads, strict=True)), loss


def _detached(named: Named) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in named.items()}


def _update_rule(optimizer: Any, rate: Callable[[str, int], Tensor] | None) -> Update:
    kind = type(optimizer).__name__
    rules = {"SGD": _sgd, "Adam": _adam}
    if kind not in rules:
        raise TypeError(f"inner_optimizer must be fastmeta.SGD or fastmeta.Adam, got {kind}")

    def update(phi: Named, grads: Named, state: Any, k: int, _: Tensor) -> tuple[dict[str, Tensor], Any]:
        moved, after = {}, {}
        for name, p in phi.items():
            lr = optimizer.lr if rate is None else rate(name, k)
            moved[name], after[name] = rules[kind](optimizer, lr, p, grads[name], state[name] if state else (), k)
        return moved, after

    return update


def _sgd(opt: Any, lr: Any, p: Tensor, g: Tensor, state: State, _: int) -> tuple[Tensor, State]:
    """torch.optim.SGD with dampening 0: b ← μ b + d, then along d + μ b (Nesterov) or b."""
    d = g + opt.weight_decay * p if opt.weight_decay else g
    if not opt.momentum:
        return _step(p, lr, d), ()
    b = opt.momentum * state[0] + d if state else d
    direction = d + opt.momentum * b if opt.nesterov else b
    return _step(p, lr, direction), (b,)


def _step(p: Tensor, lr: Any, d: Tensor) -> Tensor:
    return torch.sub(p, d, alpha=lr) if isinstance(lr, float) else p - lr * d  # one op where lr is a number


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


def _scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a 0-dim tensor for each task, got {type(value).__name__}")
    if value.dim():
        raise ValueError(
            f"{name} must return a scalar for each task, got a tensor of shape {list(value.shape)}; "
            "reduce it over the samples, for instance with .mean()"
        )
    return value
