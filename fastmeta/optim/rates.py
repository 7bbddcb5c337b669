"""Learned inner rates, and the rates of a step in general: how the tensor that an inner loop steps by is made.

Plain PyTorch in front of the engine. Rates are [K, P] or what broadcasts to it: [1, P] where all steps share them,
[K, 1] where all parameters do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Meta, Rows, check_number, pieces


class Rates(nn.Module):
    """Learned rates of an inner rule, `SGD(lr=...)` or `Adam(lr=...)`: a module whose parameters are meta-learned.

    A meta-learner calls `build` once, when it is made, and shows the module as `learner.learned`. For a
    parametrisation of your own (positive rates, one for all) write `build` and `forward`.
    """

    def build(self, rows: Rows, steps: int) -> None:
        """Makes the parameters, for the fast weights of `rows` and `steps` inner steps."""
        raise NotImplementedError(f"{type(self).__name__} needs a method build(rows, steps)")

    def forward(self, rows: Rows, steps: int) -> Tensor:
        """The rates of steps 0 to `steps` − 1, [steps, P], [1, P] or [steps, 1]."""
        raise NotImplementedError(f"{type(self).__name__} needs a method forward(rows, steps)")


class PerParameter(Rates):
    """A rate for every single parameter, the same in all steps, of any sign: Meta-SGD (Li et al. 2017).

    `values` [1, P] is the one parameter, in the order of a row of fast weights; `named()` shows it by the names and in
    the shapes of the module's parameters.

    Args:
        lr: where every rate starts: a number for all, or a range (low, high), from which each is drawn uniformly by
            PyTorch's generator.

    Example:
        >>> maml = fastmeta.MAML(model, inner_optimizer=fastmeta.SGD(lr=fastmeta.PerParameter(0.01)))
        >>> groups = [{"params": model.parameters()}, {"params": maml.learned.parameters(), "lr": 1e-4}]
        >>> optimizer = torch.optim.Adam(groups)
    """

    values: nn.Parameter

    def __init__(self, lr: float | tuple[float, float]) -> None:
        super().__init__()
        self.lr = _checked_range(f"{type(self).__name__}.lr", lr)
        self._rows: Rows | None = None

    def build(self, rows: Rows, steps: int) -> None:
        """One value for each of a row."""
        self._build(rows, self.lr)

    def _build(self, rows: Rows, values: float | tuple[float, float]) -> None:
        if self._rows is not None:
            _check_same(self, self._rows, rows)
            return
        self._rows = rows
        low, high = values if isinstance(values, tuple) else (values, values)
        made = torch.zeros(1, rows.size, dtype=rows.dtype, device=rows.device)
        for view in _views(rows, made).values():
            if low < high:
                view.copy_(torch.empty(view.shape, dtype=view.dtype).uniform_(low, high))  # from the CPU's generator
            else:
                view.fill_(low)
        self.values = nn.Parameter(made)

    def forward(self, rows: Rows, steps: int) -> Tensor:
        """[1, P]."""
        return self._laid_out(self.values, rows)

    def _laid_out(self, values: Tensor, rows: Rows) -> Tensor:
        """As `rows` have them: a learner that was moved to another dtype pads its parameters differently."""
        if values.shape[1] == rows.size:
            return values
        assert self._rows is not None, "forward before build"
        parts: list[Tensor] = []
        for view, pad in zip(_views(self._rows, values).values(), rows.padding, strict=True):
            parts += [view.reshape(1, -1), values.new_zeros(1, pad)]
        return torch.cat(parts, 1)

    def named(self, values: Tensor | None = None) -> dict[str, Tensor]:
        """Views of the values, or of another tensor [1, P] such as their gradient, as {name: [*shape]}."""
        assert self._rows is not None, "named before build"
        return _views(self._rows, self.values.detach() if values is None else values)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Also what was saved in another dtype, in which rows are padded differently."""
        saved, rows, key = state_dict.get(f"{prefix}values"), self._rows, f"{prefix}values"
        if rows is not None and isinstance(saved, Tensor) and saved.shape != self.values.shape:
            laid_out = _repadded(saved, rows)
            state_dict = state_dict if laid_out is None else {**state_dict, key: laid_out}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"lr={self.lr}"


class Masked(PerParameter):
    """One step size for the parameters whose mask m is at least zero, and none for the others: sparse-MAML.

    `values` [1, P] is m, of which the gradient passes the step 1[m ≥ 0] as if that were the identity.

    Args:
        lr: the step size.
        mask: where m starts: a number for all, or a range (low, high), from which each is drawn uniformly.
    """

    def __init__(self, lr: float, *, mask: float | tuple[float, float] = (-0.5, 0.5)) -> None:
        check_number("Masked.lr", lr)
        super().__init__(lr)
        self.mask = _checked_range("Masked.mask", mask, negative=True)

    def build(self, rows: Rows, steps: int) -> None:
        """One mask for each value of a row."""
        self._build(rows, self.mask)

    def forward(self, rows: Rows, steps: int) -> Tensor:
        """[1, P]: `lr` or zero."""
        m = self.values
        assert isinstance(self.lr, int | float), "checked when it was made"
        return self._laid_out(((m >= 0).to(m.dtype) + (m - m.detach())) * self.lr, rows)

    def density(self) -> dict[str, float]:
        """The share of every parameter's values that the inner loop moves, in [0, 1]."""
        return {name: (m >= 0).double().mean().item() for name, m in self.named().items()}

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"lr={self.lr}, mask={self.mask}"


class PerLayerPerStep(Rates):
    """A rate for every layer and step: LSLR of MAML++ (Antoniou et al. 2019).

    `values` [K, layers] is the one parameter, K the learner's inner steps; `names` says which layer a column is.

    Args:
        lr: where every rate starts.
        by: "tensor" gives every parameter tensor a rate of its own, "module" one to all that a submodule holds.
    """

    values: nn.Parameter

    def __init__(self, lr: float, *, by: Literal["tensor", "module"] = "tensor") -> None:
        super().__init__()
        check_number("PerLayerPerStep.lr", lr)
        if by not in ("tensor", "module"):
            raise ValueError(f'PerLayerPerStep.by must be "tensor" or "module", got {by!r}')
        self.lr, self.by = lr, by
        self.names: tuple[str, ...] = ()
        self._rows: Rows | None = None

    def build(self, rows: Rows, steps: int) -> None:
        """One value for each step and layer."""
        if self._rows is not None:
            _check_same(self, self._rows, rows)
            return
        self._rows = rows
        layers = [name.rpartition(".")[0] if self.by == "module" else name for name in rows.names]
        self.names = tuple(dict.fromkeys(layers))
        widths = torch.tensor(pieces(rows))
        column = torch.tensor([self.names.index(layer) for layer in layers]).repeat_interleave(widths)
        self.register_buffer("_column", column.to(rows.device), persistent=False)
        values = torch.full((steps, len(self.names)), self.lr, dtype=rows.dtype, device=rows.device)
        self.values = nn.Parameter(values)

    def forward(self, rows: Rows, steps: int) -> Tensor:
        """[steps, P]."""
        if steps > self.values.shape[0]:
            raise ValueError(
                f"PerLayerPerStep has rates for {self.values.shape[0]} inner steps, the learner's inner_steps when it "
                f"was made, and step {steps} was asked for; adapt with fewer steps, or make the learner with more"
            )
        return self.values[:steps].index_select(1, cast(Tensor, self._column))

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"lr={self.lr}, by={self.by!r}"


Rate = float | Sequence[float] | Callable[[int], float] | Rates
"""A step size: one number, one for each step, a function of the step k = 0, 1, …, or learned."""


def rates_of(lr: Rate, rows: Rows, steps: int) -> Tensor:
    """The rates of `steps` inner steps as a tensor: [1, 1], [steps, 1] or what a `Rates` gives.

    Raises:
        ValueError: fewer numbers than steps, or a function that gives something else than a number.
    """
    if isinstance(lr, Rates):
        rates = lr(rows, steps)
        if rates.dim() != 2 or rates.shape[0] not in (1, steps) or rates.shape[1] not in (1, rows.size):
            raise ValueError(
                f"{type(lr).__name__}.forward must give rates [{steps} or 1, {rows.size} or 1], got {list(rates.shape)}"
            )
        return rates.to(rows.device, rows.dtype)
    if isinstance(lr, int | float):
        return _fixed(float(lr), rows.dtype, rows.device)
    values = [lr(k) for k in range(steps)] if callable(lr) else list(lr[:steps])
    if len(values) < steps:
        raise ValueError(f"lr holds a step size for each of {len(values)} inner steps, and {steps} are asked for")
    for k, value in enumerate(values):
        check_number(f"lr of step {k}", value)
    return torch.tensor(values, dtype=rows.dtype).reshape(-1, 1).to(rows.device)


class StepSize:
    """What rules with a step size `lr` have in common: `meta` is the one tensor of their rates."""

    meta_by_step: ClassVar[bool] = True
    lr: Rate

    @property
    def learned(self) -> Rates | None:
        """Learned rates, where `lr` is such."""
        return self.lr if isinstance(self.lr, Rates) else None

    @property
    def fixed(self) -> bool:
        """Whether `lr` is a number, or one for each step."""
        return isinstance(self.lr, int | float | tuple)

    def meta(self, rows: Rows, steps: int) -> Meta:
        """The rates, [K, P] or what broadcasts to it."""
        return (rates_of(self.lr, rows, steps),)


@lru_cache(maxsize=64)
def _fixed(lr: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, 1]; kept, as a meta-step of a few hundred microseconds waits for it."""
    with torch.inference_mode(False):
        return torch.full((1, 1), lr, dtype=dtype, device=device)


def check_rate(name: str, lr: Any) -> None:
    """Raises ValueError where `lr` is nothing that an inner rule can step by."""
    if isinstance(lr, Rates) or (callable(lr) and not isinstance(lr, type)):
        return
    if isinstance(lr, Sequence) and not isinstance(lr, str):
        if not lr:
            raise ValueError(f"{name} must hold a step size for each inner step, got none")
        for k, value in enumerate(lr):
            check_number(f"{name}[{k}]", value)
        return
    if not isinstance(lr, int | float) or isinstance(lr, bool) or not math.isfinite(lr) or lr < 0:
        raise ValueError(
            f"{name} must be a number finite and not negative, a sequence of one for each inner step, a function of "
            f"the step, or fastmeta.PerParameter(0.01) and its kind, got {lr!r}"
        )


def _checked_range(name: str, value: Any, *, negative: bool = False) -> float | tuple[float, float]:
    """A number, or a range as a tuple.

    Raises:
        ValueError: it is neither, or not finite, or, unless `negative`, below zero.
    """
    ends = tuple(value) if isinstance(value, tuple | list) else (value, value)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in ends)
    if not numbers or len(ends) != 2 or ends[0] > ends[1] or (ends[0] < 0 and not negative):
        kind = "finite" if negative else "finite and not negative"
        raise ValueError(f"{name} must be a number, {kind}, or a range (low, high) of such, got {value!r}")
    return ends if isinstance(value, tuple | list) else value


def frozen(lr: Rate) -> Rate:
    """A list as a tuple, so that the rule that holds it can be hashed."""
    return tuple(lr) if isinstance(lr, Sequence) else lr


def rate_at(meta: tuple[Tensor, ...]) -> Tensor:
    """The one tensor that SGD and Adam are handed: α of this step, [P] or [1]."""
    (rate,) = meta
    return rate


def rate_gradient(rate: Tensor, lam: Tensor, direction: Tensor) -> Tensor:
    """Each task's ∂/∂α of φ − α u under λ: −λ u, [T, P], or its sum [T, 1] where one rate serves all parameters."""
    product = -lam * direction
    return product if rate.shape[-1] == product.shape[-1] else product.sum(1, keepdim=True)


def _views(rows: Rows, values: Tensor) -> dict[str, Tensor]:
    return {
        name: values[0, at : at + shape.numel()].view(shape)
        for name, shape, at in zip(rows.names, rows.shapes, rows.offsets, strict=True)
    }


def _repadded(saved: Tensor, rows: Rows) -> Tensor | None:
    """A row [1, P] that was padded to whole 16 bytes of another dtype, as `rows` have it; None: it is no such row."""
    sizes = [shape.numel() for shape in rows.shapes]
    for element in (2, 4, 8, 16):
        pads = [-size % (16 // element) for size in sizes]
        if list(saved.shape) == [1, sum(sizes) + sum(pads)]:
            parts = saved[0].split([n for pair in zip(sizes, pads, strict=True) for n in pair])[::2]
            return torch.cat([F.pad(x, (0, pad)) for x, pad in zip(parts, rows.padding, strict=True)]).unsqueeze(0)
    return None


def _check_same(rates: Rates, built: Rows, rows: Rows) -> None:
    if built.names != rows.names or built.shapes != rows.shapes:
        raise ValueError(
            f"{type(rates).__name__} was made for the fast weights {list(built.names)}, and this learner has "
            f"{list(rows.names)}; give every learner rates of its own"
        )
