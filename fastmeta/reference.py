"""The truth: one task at a time, plain autograd through the unrolled inner loop, any module, any dtype.

Shares no code with the engine, so that either can be held against the other; slow, and as close to the
equations as PyTorch allows. With L_s a task's support loss and φ_0 = θ, the inner loop is
φ_{k+1} = step(φ_k, ∇L_s(φ_k)); its gradients keep their graph (`create_graph`), so whatever is computed from
φ_K differentiates exactly back to θ (Finn et al. 2017, equation 1), through the inner optimiser's state too.

A module's input may be a tensor, or a tuple (positional arguments) or dict (keyword arguments) of tensors.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Tree = Any  # a tensor, or a tuple or dict of tensors
Loss = Callable[[Any, Any], Tensor]


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
    path = trajectory(
        module, inner_loss=inner_loss, inner_optimizer=inner_optimizer, steps=steps, support_x=support_x,
        support_y=support_y, inner_batch_size=inner_batch_size, first_order=first_order, variant=variant,
    )  # fmt: skip
    return path.phis[-1]


@dataclass(frozen=True)
class Variant:
    """What an inner loop may have beyond plain MAML's; every default is MAML.

    Attributes:
        start: φ_0 by name, [*shape] for all tasks or with `own_start` [T, *shape]; what it does not name is shared by
            all tasks and moved by none. None: all trainable parameters as they are.
        rate: (name, k) → step size of step k, a tensor that broadcasts to the parameter. None: the optimiser's `lr`.
        update: another rule than SGD and Adam, on all parameters of a task: (φ, g, state, k) → (φ, state), the state
            None at first.
        clip_norm: largest norm of a task's gradient, as `torch.nn.utils.clip_grad_norm_` has it.
        proximal: c of c/2 ‖φ − φ_0‖², added to the support loss.
        constant_gradients: differentiate through the update, but not through inner gradients.
        first: steps that the loop went already, which count for `rate`, Adam and inner batches.
        states: the optimiser's after them, one a task.
    """

    start: Mapping[str, Tensor] | None = None
    own_start: bool = False
    rate: Callable[[str, int], Tensor] | None = None
    update: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Any, int], tuple[dict[str, Tensor], Any]] | None = (
        None
    )
    clip_norm: float | None = None
    proximal: float = 0.0
    constant_gradients: bool = False
    first: int = 0
    states: Sequence[Any] | None = None


class Path(NamedTuple):
    """φ_0 … φ_K of all tasks, {name: [T, *shape]} each, and the optimiser's last state of every task."""

    phis: list[dict[str, Tensor]]
    states: list[Any]


def trajectory(
    module: nn.Module, *, inner_loss: Loss, inner_optimizer: Any, steps: int, support_x: Tree, support_y: Tree,
    inner_batch_size: int | None = None, first_order: bool = False, variant: Variant | None = None,
) -> Path:  # fmt: skip
    """As `adapt`, with the fast weights before and after every step."""
    variant = Variant() if variant is None else variant
    theta = variant.start
    if theta is None:
        theta = {name: p for name, p in module.named_parameters() if p.requires_grad}
    differentiable = torch.is_grad_enabled()
    descend = _Descent(
        module, inner_loss, variant.update or _update_rule(inner_optimizer, variant.rate), steps, inner_batch_size,
        differentiable, first_order, variant,
    )  # fmt: skip
    with torch.inference_mode(False), torch.enable_grad():
        support_x, support_y = _for_autograd(support_x), _for_autograd(support_y)
        tasks = range(_shape(support_x)[0])
        paths, states = [], []
        for t in tasks:
            start = {name: p[t] for name, p in theta.items()} if variant.own_start else dict(theta)
            state = None if variant.states is None else variant.states[t]
            path, state = descend(start, state, _select(support_x, t), _select(support_y, t))
            paths.append(path)
            states.append(state)
        phis = [{name: torch.stack([path[k][name] for path in paths]) for name in theta} for k in range(steps + 1)]
    if not differentiable:
        phis = [{name: p.detach() for name, p in phi.items()} for phi in phis]
    return Path(phis, states)


def apply(
    module: nn.Module,
    params: Mapping[str, Tensor],
    x: Tree,
    *,
    support_x: Tree = None,
    bn_statistics: str = "batch",
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
    tasks = _shape(x)[0]
    outputs = []
    for t in range(tasks):
        phi = {name: p[t] for name, p in params.items()}
        x_t = _select(x, t)
        if bn_statistics == "support":
            outputs.append(_call_with_support_statistics(module, phi, _select(support_x, t), x_t))
        else:
            outputs.append(_call(module, phi, x_t))
    return pytree.tree_map(_stack, *outputs)


def task_losses(loss: Loss, outputs: Tree, targets: Tree) -> Tensor:
    """The loss of each task, [T], of outputs [T, M, ...] and targets [T, M, ...] (or None).

    Raises:
        TypeError, ValueError: the loss returns no tensor, or no scalar.
    """
    tasks = _shape(outputs)[0]
    return torch.stack([_scalar("loss", loss(_select(outputs, t), _select(targets, t))) for t in range(tasks)])


# The inner loop of one task. An update takes and gives all parameters: (φ, g, state, k) → (φ, state).

State = tuple[Tensor, ...]
Named = Mapping[str, Tensor]
Update = Callable[[Named, Named, Any, int], tuple[dict[str, Tensor], Any]]


@dataclass(frozen=True)
class _Descent:
    """φ_0, support set → φ_0 … φ_K; where `differentiable`, with their graph back to θ, rates and data."""

    module: nn.Module
    loss: Loss
    update: Update
    steps: int
    batch: int | None
    differentiable: bool
    first_order: bool
    variant: Variant

    def __call__(self, start: Named, state: Any, x: Tree, y: Tree) -> tuple[list[Named], Any]:
        exact = self.differentiable and not self.first_order and not self.variant.constant_gradients
        phi, path = start, [start]
        for k in range(self.variant.first, self.variant.first + self.steps):
            here = phi if exact else {name: p.detach().requires_grad_() for name, p in phi.items()}
            grads = self.gradients(here, start, *self.samples(k, x, y), keep=exact)
            if self.first_order or not self.differentiable:
                # ∂φ_{k+1}/∂φ_k is the identity; what the update itself learns keeps its derivative
                fixed = {name: p.detach() for name, p in phi.items()}
                moved, state = self.update(fixed, grads, state, k)
                phi = {name: p + (moved[name] - fixed[name]) for name, p in phi.items()}
                if not self.differentiable:
                    phi = {name: p.detach() for name, p in phi.items()}
            else:
                phi, state = self.update(phi, grads, state, k)
            path.append(phi)
        return path, state

    def samples(self, k: int, x: Tree, y: Tree) -> tuple[Tree, Tree]:
        if self.batch is None:
            return x, y
        index = (k * self.batch + torch.arange(self.batch)) % _shape(x)[0]
        return _select(x, index), _select(y, index)

    def gradients(self, phi: Named, start: Named, x: Tree, y: Tree, *, keep: bool) -> dict[str, Tensor]:
        loss = _scalar("inner_loss", self.loss(_call(self.module, phi, x), y))
        if not loss.requires_grad:
            raise ValueError(
                "inner_loss depends on no trainable parameter, so there is nothing to adapt; check that "
                "neither the module nor the loss detaches its result"
            )
        if self.variant.proximal:
            loss = loss + self.variant.proximal / 2 * sum((p - start[name]).square().sum() for name, p in phi.items())
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=keep, materialize_grads=True)
        if self.variant.clip_norm is not None:
            # a norm of exactly zero has no derivative; such a gradient is not clipped either
            square = torch.stack([g.square().sum() for g in grads]).sum()
            norm = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
            scale = (self.variant.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            grads = [g * scale for g in grads]
        return dict(zip(phi, grads, strict=True))


def _update_rule(optimizer: Any, rate: Callable[[str, int], Tensor] | None) -> Update:
    kind = type(optimizer).__name__
    rules = {"SGD": _sgd, "Adam": _adam}
    if kind not in rules:
        raise TypeError(f"inner_optimizer must be fastmeta.SGD or fastmeta.Adam, got {kind}")

    def update(phi: Named, grads: Named, state: Any, k: int) -> tuple[dict[str, Tensor], Any]:
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
    """Kingma & Ba 2015, algorithm 1: eps stands outside the root of the bias-corrected second moment."""
    beta1, beta2 = opt.betas
    m, v = state or (torch.zeros_like(p), torch.zeros_like(p))
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1 ** (k + 1)), v / (1 - beta2 ** (k + 1))
    # The root's slope at 0 is infinite and would turn a zero cotangent into NaN: keep 0 away from it, twice.
    positive = v_hat > 0
    root = torch.where(positive, torch.where(positive, v_hat, 1.0).sqrt(), 0.0)
    return p - lr * m_hat / (root + opt.eps), (m, v)


# Data of one task.


def _call(module: nn.Module, params: Mapping[str, Tensor], x: Tree) -> Tree:
    """The module's output under `params`; a training batch norm writes to copies of its buffers."""
    values = {**params, **{name: buffer.clone() for name, buffer in module.named_buffers()}}
    args, kwargs = ((), x) if isinstance(x, dict) else (tuple(x) if isinstance(x, tuple | list) else (x,), {})
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
        return functional_call(module, values, args, kwargs)


def _select(tree: Tree, index: int | Tensor) -> Tree:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf[index], tree)


def _shape(tree: Tree) -> torch.Size:
    """Shape of the first tensor in `tree`."""
    return next(leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)).shape


def _for_autograd(tree: Tree) -> Tree:
    """Tensors made under `torch.inference_mode` as copies that autograd accepts."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.clone() if leaf.is_inference() else leaf, tree)


def _stack(*leaves: Any) -> Any:
    return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def _scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a 0-dim tensor for each task, got {type(value).__name__}")
    if value.dim():
        raise ValueError(
            f"{name} must return a scalar for each task, got a tensor of shape {list(value.shape)}; "
            "reduce it over the samples, for instance with .mean()"
        )
    return value


# bn_statistics="support": every batch norm, nn.BatchNorm* and functional, passes through F.batch_norm, which
# a mode intercepts without touching the module.

_BATCH_NORM = inspect.signature(F.batch_norm)
Normalise = Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor]  # (x, weight, bias, eps) → y


class _BatchNormMode(TorchFunctionMode):
    """Hands the calls of F.batch_norm that use the statistics of their batch to `normalise`."""

    def __init__(self, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            call = _BATCH_NORM.bind(*args, **(kwargs or {})).arguments
            if call.get("training"):
                return self.normalise(call["input"], call.get("weight"), call.get("bias"), call.get("eps", 1e-5))
        return func(*args, **(kwargs or {}))


def _call_with_support_statistics(module: nn.Module, params: Mapping[str, Tensor], support_x: Tree, x: Tree) -> Tree:
    """The module's output on `x`, each batch norm using mean and variance of its call on `support_x`."""
    statistics: deque[tuple[Tensor, Tensor]] = deque()

    def record(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        dims = [0, *range(2, x.dim())]
        statistics.append((wide.mean(dims, keepdim=True), wide.var(dims, correction=0, keepdim=True)))
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)

    def replay(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        if not statistics:
            raise RuntimeError(uneven)
        mean, var = statistics.popleft()
        per_channel = [1, -1, *[1] * (x.dim() - 2)]
        y = (x - mean) * (var + eps).rsqrt()
        if weight is not None:
            y = y * weight.view(per_channel)
        if bias is not None:
            y = y + bias.view(per_channel)
        return y.to(x.dtype)

    uneven = (
        'bn_statistics="support" needs a module that makes the same batch-norm calls on the query as on the '
        'support set, got a different number; use bn_statistics="batch"'
    )
    with _BatchNormMode(record):
        _call(module, params, support_x)
    with _BatchNormMode(replay):
        outputs = _call(module, params, x)
    if statistics:
        raise RuntimeError(uneven)
    return outputs
