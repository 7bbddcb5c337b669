"""Ridge regression as the classifier on an encoder's features: R2D2 and MetaOptNet's head."""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fastmeta.engine.episode import Head

from .features import FeatureArguments, FeatureLearner


class R2D2(FeatureLearner):
    """Ridge regression on features, differentiated in closed form (Bertinetto et al. 2019).

        X = [f_θ(x), 1] / √N,  Y = onehot / √N,  W = (XᵀX + λ I)⁻¹ XᵀY = Xᵀ (X Xᵀ + λ I)⁻¹ Y
        logits = a · [f_θ(q), 1] W + b

    The column of ones is regularised with the rest, as in the authors' code. Of the two forms the smaller system is
    solved, by Cholesky in float32 at least: min(N, D + 1)³ operations a task. Its derivative is two more solves.

    Args:
        encoder: f_θ, such as a convolutional network without its last linear layer.
        lam, learn_lam: λ at the start, and whether it is learned: the paper's is, that of the released settings is not.
        scale, learn_scale: a. The released settings have 1e-4 for miniImageNet and 10 for CIFAR-FS and Omniglot.
        bias, learn_bias: b, whose gradient under cross-entropy is exactly zero.
        lam_base: where it is not 1, λ is lam_base ** lam.
        adjust_base: where it is not 1, a is adjust_base ** scale and b is adjust_base ** bias − 1.
        ways: C; None takes it from the labels of each meta-batch.
        joint: support and query set pass the encoder as one batch, as in the authors' code; that matters to batch norm.

    λ, a and b are parameters of `learned`. All other arguments, labels, padding (N counts the samples that are not
    ignored) and absent classes: `fastmeta.FeatureLearner`.

    Raises:
        ValueError: λ that is not positive, or another number out of range.

    Example:
        >>> r2d2 = fastmeta.R2D2(encoder, ways=5, scale=10.0)
        >>> r2d2(support_x, support_y, query_x, query_y).loss.backward()
    """

    def __init__(
        self, encoder: nn.Module, *, lam: float = 50.0, scale: float = 1.0, bias: float = 0.0, learn_lam: bool = False,
        learn_scale: bool = True, learn_bias: bool = True, lam_base: float = 1.0, adjust_base: float = 1.0,
        ways: int | None = None, joint: bool = True, **options: Unpack[FeatureArguments],
    ) -> None:  # fmt: skip
        head = RidgeHead(
            lam=_Number("lam", lam, learn_lam, lam_base), scale=_Number("scale", scale, learn_scale, adjust_base),
            bias=_Number("bias", bias, learn_bias, adjust_base), ones=True,
        )  # fmt: skip
        head.to(_like(encoder))
        super().__init__(encoder, head, ways=ways, joint=joint, **options)


class MetaOptNetRR(FeatureLearner):
    """MetaOptNet's ridge regression head (Lee et al. 2019): W = (ZᵀZ + λ I)⁻¹ Zᵀ onehot, logits = a · f_θ(q) W.

    Z are the support features, without a column of ones and not divided by √N. Solved as `fastmeta.R2D2`.

    Args:
        encoder: f_θ, such as a convolutional network without its last linear layer.
        lam: λ.
        scale, learn_scale: a at the start, and whether it is learned: then a parameter of `learned`.
        ways: C; None takes it from the labels of each meta-batch.
        joint: support and query set pass the encoder as one batch; apart by default, as in the authors' code.

    All other arguments, labels, padding and absent classes: `fastmeta.FeatureLearner`.

    Raises:
        ValueError: λ that is not positive, or a scale that is not finite.

    Example:
        >>> metaoptnet = fastmeta.MetaOptNetRR(encoder, ways=5)
        >>> metaoptnet(support_x, support_y, query_x, query_y).loss.backward()
    """

    def __init__(
        self, encoder: nn.Module, *, lam: float = 50.0, scale: float = 1.0, learn_scale: bool = True,
        ways: int | None = None, joint: bool = False, **options: Unpack[FeatureArguments],
    ) -> None:  # fmt: skip
        head = RidgeHead(
            lam=_Number("lam", lam, False, 1.0), scale=_Number("scale", scale, learn_scale, 1.0), bias=None, ones=False
        )
        head.to(_like(encoder))
        super().__init__(encoder, head, ways=ways, joint=joint, **options)


class _Number:
    """A number of the head, checked: learned or not, as it is or as a power of a base."""

    def __init__(self, name: str, value: Any, learned: Any, base: Any) -> None:
        for what, x in ((name, value), ("adjust_base" if name != "lam" else "lam_base", base)):
            if not isinstance(x, int | float) or isinstance(x, bool) or not math.isfinite(x):
                raise ValueError(f"{what} must be a finite number, got {x!r}")
        if base <= 0:
            raise ValueError(f"{'lam_base' if name == 'lam' else 'adjust_base'} must be positive, got {base!r}")
        if name == "lam" and base == 1 and value <= 0:
            raise ValueError(f"lam must be positive, as the system X Xᵀ + lam I is solved, got {value!r}")
        if type(learned) is not bool:
            raise TypeError(f"learn_{name} must be True or False, got {learned!r}")
        self.value, self.learned, self.base = float(value), learned, float(base)

    def held(self) -> nn.Parameter | float:
        """A parameter [1], or the number."""
        return nn.Parameter(torch.tensor([self.value])) if self.learned else self.value


class RidgeHead(Head):
    """W by ridge regression of the classes' indicators on the features; `lam`, `scale`, `bias` [1] where learned."""

    def __init__(self, *, lam: _Number, scale: _Number, bias: _Number | None, ones: bool) -> None:
        super().__init__()
        self.lam, self.scale = lam.held(), scale.held()
        self.bias = None if bias is None else bias.held()
        self._lam_base, self._adjust_base, self._ones = lam.base, scale.base, ones

    def forward(self, support: Tensor, members: Tensor, query: Tensor) -> Tensor:
        dtype = torch.promote_types(support.dtype, torch.float32)
        x, z, y = support.to(dtype), query.to(dtype), members.to(dtype)
        counted = y.sum(1, keepdim=True)  # [N, 1]: 0 of an ignored sample, whose row is zero then
        if self._ones:
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
            z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
            root = counted.sum().clamp(min=1.0).rsqrt()
            counted, y = counted * root, y * root
        weights = solved(x * counted, y, _power(self._lam_base, self.lam))
        logits = _power(self._adjust_base, self.scale) * (z @ weights)
        if self.bias is not None:
            logits = logits + (self.bias if self._adjust_base == 1.0 else self._adjust_base**self.bias - 1.0)
        return logits.to(support.dtype)


def solved(x: Tensor, y: Tensor, lam: Tensor | float) -> Tensor:
    """W [D, C] of (XᵀX + λ I) W = XᵀY, X [N, D], Y [N, C]: by the system of N or of D unknowns, whichever is less."""
    samples, width = x.shape
    eye = torch.eye(min(samples, width), dtype=x.dtype, device=x.device)
    # without a check, which would make a device wait: the system is positive for λ > 0, and NaN stays NaN
    if samples <= width:
        factor = torch.linalg.cholesky_ex(x @ x.T + lam * eye)[0]
        return x.T @ torch.cholesky_solve(y, factor)
    factor = torch.linalg.cholesky_ex(x.T @ x + lam * eye)[0]
    return torch.cholesky_solve(x.T @ y, factor)


def _power(base: float, x: Tensor | float) -> Tensor | float:
    return x if base == 1.0 else base**x


def _like(encoder: nn.Module) -> Tensor | torch.dtype:
    """The encoder's dtype and device; what is no module raises later, in its own name."""
    parameters = encoder.parameters() if isinstance(encoder, nn.Module) else ()
    return next((p for p in parameters if p.requires_grad), torch.float32)
