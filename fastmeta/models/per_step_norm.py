"""Batch norm with weights and running statistics for every inner step (MAML++: Antoniou, Edwards, Storkey 2019)."""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = Literal["batch", "running"]


class PerStepBatchNorm(nn.Module):
    """Batch norm of values [N, C] or [N, C, ...] whose γ and β, and whose running statistics, are those of a step.

    In inner step k, and in the query pass at φ_{k+1}, fastmeta sets the buffer `inner_step` [K] to 1 at k and to 0
    elsewhere, so that γ_k = inner_step @ weight, and so on; by itself the layer is that of step 0.

    Args:
        num_features: C.
        steps: K, the most inner steps that a meta-learner may take.
        eps: added to the variance.
        momentum: of `track`: running ← running + momentum · (that of the batch − running); None: a mean over all calls.
        weight, bias: whether there are γ and β.
        per_step_affine: γ and β are [K, C], of every step its own; False: [C], one for all.
        statistics: "batch" normalises by the batch at hand, always, as the authors' code does. "running" does so in
            training mode, and in eval mode normalises by the running statistics of the step, as the paper has it.

    A forward never writes the running statistics, as nobody would know of which task and step they are. They are moved
    by `track`: `fastmeta.MAMLPlusPlus.update_statistics` calls it for every task and step.

    Raises:
        ValueError: an option out of range, or an input of another number of features.
    """

    inner_step: Tensor
    running_mean: Tensor
    running_var: Tensor
    batches_tracked: Tensor

    def __init__(
        self, num_features: int, steps: int, *, eps: float = 1e-5, momentum: float | None = 0.1, weight: bool = True,
        bias: bool = True, per_step_affine: bool = True, statistics: Statistics = "batch",
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in (("num_features", num_features), ("steps", steps)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if statistics not in ("batch", "running"):
            raise ValueError(f'statistics must be "batch" or "running", got {statistics!r}')
        self.num_features, self.steps, self.eps, self.momentum = num_features, steps, eps, momentum
        self.per_step_affine, self.statistics = per_step_affine, statistics
        shape = (steps, num_features) if per_step_affine else (num_features,)
        self.weight = nn.Parameter(torch.ones(shape)) if weight else None
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else None
        self.register_buffer("inner_step", F.one_hot(torch.tensor(0), steps).float(), persistent=False)
        if statistics == "running":
            self.register_buffer("running_mean", torch.zeros(steps, num_features))
            self.register_buffer("running_var", torch.ones(steps, num_features))
            self.register_buffer("batches_tracked", torch.zeros(steps, dtype=torch.int64))

    def _of_step(self, values: Tensor | None) -> Tensor | None:
        """The row [C] of the step out of [K, C]."""
        if values is None or values.dim() == 1:
            return values
        return self.inner_step @ values

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] → the same shape."""
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(f"PerStepBatchNorm takes values [N, {self.num_features}, ...], got {list(x.shape)}")
        weight, bias = self._of_step(self.weight), self._of_step(self.bias)
        if self.training or self.statistics == "batch":
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        mean, var = self._of_step(self.running_mean), self._of_step(self.running_var)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=self.eps)

    @torch.no_grad()
    def track(self, x: Tensor, step: int) -> None:
        """Moves the running statistics of a step towards those of a batch [N, C, ...].

        Raises:
            RuntimeError: the layer has none (statistics="batch").
        """
        if self.statistics != "running":
            raise RuntimeError('this layer has no running statistics: make it with statistics="running"')
        dims = [0, *range(2, x.dim())]
        count = self.batches_tracked[step].add_(1)
        rate = self.momentum if self.momentum is not None else 1.0 / float(count)
        # the variance of the population, as nn.BatchNorm tracks it
        self.running_mean[step].lerp_(x.mean(dims), rate)
        self.running_var[step].lerp_(x.var(dims, correction=1), rate)

    def extra_repr(self) -> str:
        """For `repr`."""
        affine = [name for name in ("weight", "bias") if getattr(self, name) is not None]
        of = f"{' and '.join(affine)} {'per step' if self.per_step_affine else 'for all steps'}" if affine else "plain"
        return f"{self.num_features}, steps={self.steps}, {of}, statistics={self.statistics!r}"


def per_step_batch_norm(
    model: nn.Module, steps: int, *, affine: bool = True, statistics: Statistics = "batch"
) -> nn.Module:
    """A copy of a model whose `nn.BatchNorm` layers are `PerStepBatchNorm`s; γ and β of every step start as theirs.

    Args:
        model: left as it is.
        steps: K, the most inner steps that a meta-learner may take.
        affine: γ and β for every step, in layers that had none too; they start at 1 and 0 there. False: as the layer
            has them, one for all steps.
        statistics: what normalises in eval mode, see `PerStepBatchNorm`; running ones start as the layer's.

    Raises:
        ValueError: the model has no batch-norm layer, or an option is out of range.

    Example:
        >>> model = per_step_batch_norm(conv4(ways=5), steps=5)
        >>> learner = fastmeta.MAMLPlusPlus(model, inner_steps=5)
    """
    if not any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise ValueError(f"model must have an nn.BatchNorm layer, and {type(model).__name__} has none")
    converted: dict[nn.Module, nn.Module] = {}  # a layer that stands in two places is one

    def of(module: nn.Module) -> nn.Module:
        if not isinstance(module, _BatchNorm):
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = of(child)
            return module
        if module not in converted:
            converted[module] = _converted(module, steps, affine, statistics)
        return converted[module]

    return of(copy.deepcopy(model))


def _converted(layer: _BatchNorm, steps: int, affine: bool, statistics: Statistics) -> PerStepBatchNorm:
    made = PerStepBatchNorm(
        layer.num_features, steps, eps=layer.eps, momentum=layer.momentum, weight=affine or layer.affine,
        bias=affine or layer.affine, per_step_affine=affine, statistics=statistics,
    )  # fmt: skip
    like = layer.weight if layer.affine else layer.running_mean
    if like is not None:
        made.to(like.device, like.dtype)
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = cast("nn.Parameter | None", getattr(layer, name))
            if value is not None:
                mine = cast(nn.Parameter, getattr(made, name))
                mine.copy_(value.expand_as(mine)).requires_grad_(value.requires_grad)
        if statistics == "running" and layer.running_mean is not None and layer.running_var is not None:
            made.running_mean.copy_(layer.running_mean.expand_as(made.running_mean))
            made.running_var.copy_(layer.running_var.expand_as(made.running_var))
    return made.train(layer.training)
