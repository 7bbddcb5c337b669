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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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

    Returns:
        {name: [T, *shape]} for each trainable parameter, tied ones once, under their first name.
        Differentiable in θ where gradients are enabled; under `torch.no_grad` the inner loop still runs, and
        leaves no graph.

    Raises:
        TypeError: the inner optimiser is of another kind, or the loss returns no tensor.
        ValueError: the loss is no scalar, or depends on no trainable parameter.
    """
    theta = {name: p for name, p in module.named_parameters() if p.requires_grad}
    differentiable = torch.is_grad_enabled()
    exact = differentiable and not first_order
    descend = _Descent(module, inner_loss, _update_rule(inner_optimizer), steps, inner_batch_size, exact)
    with torch.inference_mode(False), torch.enable_grad():
        support_x, support_y = _for_autograd(support_x), _for_autograd(support_y)
        tasks = _shape(support_x)[0]
        learners = [descend(theta, _select(support_x, t), _select(support_y, t)) for t in range(tasks)]
        stacked = {name: torch.stack([phi[name] for phi in learners]) for name in theta}
        if exact:
            return stacked
        if differentiable:  # p - p.detach() is zero, with the identity as its derivative
            return {name: stacked[name].detach() + (p - p.detach()) for name, p in theta.items()}
        return {name: phi.detach() for name, phi in stacked.items()}


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
    tasks = next(iter(params.values())).shape[0]
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


# The inner loop of one task. An update rule takes and gives one parameter: (φ, g, state, k) → (φ, state).

State = tuple[Tensor, ...]
Update = Callable[[Tensor, Tensor, State, int], tuple[Tensor, State]]


@dataclass(frozen=True)
class _Descent:
    """θ, support set → φ_K; with `exact` the result keeps its graph back to θ."""

    module: nn.Module
    loss: Loss
    update: Update
    steps: int
    batch: int | None
    exact: bool

    def __call__(self, theta: Mapping[str, Tensor], x: Tree, y: Tree) -> Mapping[str, Tensor]:
        phi = theta
        state: dict[str, State] = dict.fromkeys(theta, ())
        for k in range(self.steps):
            if not self.exact:
                phi = {name: p.detach().requires_grad_() for name, p in phi.items()}
            grads = self.gradients(phi, *self.samples(k, x, y))
            moved = {name: self.update(p, grads[name], state[name], k) for name, p in phi.items()}
            phi = {name: p for name, (p, _) in moved.items()}
            state = {name: s for name, (_, s) in moved.items()}
        return phi

    def samples(self, k: int, x: Tree, y: Tree) -> tuple[Tree, Tree]:
        if self.batch is None:
            return x, y
        index = (k * self.batch + torch.arange(self.batch)) % _shape(x)[0]
        return _select(x, index), _select(y, index)

    def gradients(self, phi: Mapping[str, Tensor], x: Tree, y: Tree) -> dict[str, Tensor]:
        loss = _scalar("inner_loss", self.loss(_call(self.module, phi, x), y))
        if not loss.requires_grad:
            raise ValueError(
                "inner_loss depends on no trainable parameter, so there is nothing to adapt; check that "
                "neither the module nor the loss detaches its result"
            )
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=self.exact, materialize_grads=True)
        return dict(zip(phi, grads, strict=True))


def _update_rule(optimizer: Any) -> Update:
    kind = type(optimizer).__name__
    if kind == "SGD":
        return lambda p, g, state, _: _sgd(optimizer, p, g, state)
    if kind == "Adam":
        return lambda p, g, state, k: _adam(optimizer, p, g, state, k)
    raise TypeError(f"inner_optimizer must be fastmeta.SGD or fastmeta.Adam, got {kind}")


def _sgd(opt: Any, p: Tensor, g: Tensor, state: State) -> tuple[Tensor, State]:
    """torch.optim.SGD with dampening 0: b ← μ b + d, then along d + μ b (Nesterov) or b."""
    d = g + opt.weight_decay * p if opt.weight_decay else g
    if not opt.momentum:
        return p - opt.lr * d, ()
    b = opt.momentum * state[0] + d if state else d
    direction = d + opt.momentum * b if opt.nesterov else b
    return p - opt.lr * direction, (b,)


def _adam(opt: Any, p: Tensor, g: Tensor, state: State, k: int) -> tuple[Tensor, State]:
    """Kingma & Ba 2015, algorithm 1: eps stands outside the root of the bias-corrected second moment."""
    beta1, beta2 = opt.betas
    m, v = state or (torch.zeros_like(p), torch.zeros_like(p))
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1 ** (k + 1)), v / (1 - beta2 ** (k + 1))
    # The root's slope at 0 is infinite and would turn a zero cotangent into NaN: keep 0 away from it, twice.
    positive = v_hat > 0
    root = torch.where(positive, torch.where(positive, v_hat, 1.0).sqrt(), 0.0)
    return p - opt.lr * m_hat / (root + opt.eps), (m, v)


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
