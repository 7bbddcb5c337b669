"""Meta-Curvature as an inner rule: learned matrices turn the inner gradient of every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from .base import Meta, Pulled, Rows, Rule, State
from .rates import Rate, Rates, check_rate, frozen, rates_of

KINDS = (("scale",), ("scale",), ("out", "in"), ("out", "in", "kernel"))
"""The matrices of a parameter, by how many dimensions it has; with more than three it has those of three."""


class Curvatures(nn.Module):
    """The learned matrices of `Curvature`, all of them the identity at first.

    A weight [out, in] has matrices out and in; one of a convolution, [out, in, *kernel], also one for all of its
    kernel's places; a vector has a factor for each element. `values` holds them; `named()` shows them by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.ParameterList()
        self.names: tuple[str, ...] = ()
        self.shapes: tuple[torch.Size, ...] = ()

    def build(self, rows: Rows, steps: int) -> None:
        """The matrices of every parameter of a row."""
        if self.names:
            if rows.shapes != self.shapes:
                raise ValueError(
                    f"these curvatures were made for parameters of the shapes {[list(s) for s in self.shapes]}, and "
                    f"this learner has {[list(s) for s in rows.shapes]}; give every learner curvatures of its own"
                )
            return
        if rows.dtype.is_complex:
            raise ValueError("Curvature turns gradients of real numbers, and the module has complex parameters")
        self.shapes = tuple(rows.shapes)
        names: list[str] = []
        for name, shape in zip(rows.names, rows.shapes, strict=True):
            for kind, size in zip(KINDS[min(len(shape), 3)], _flat(shape), strict=False):
                made = torch.ones(size) if kind == "scale" else torch.eye(size)
                self.values.append(nn.Parameter(made.to(rows.device, rows.dtype)))
                names.append(f"{kind}/{name}")
        self.names = tuple(names)

    def named(self) -> dict[str, nn.Parameter]:
        """{"out/WEIGHT": [out, out], "in/WEIGHT": [in, in], "kernel/WEIGHT": [k, k], "scale/VECTOR": [elements]}."""
        return dict(zip(self.names, self.values, strict=True))


class _Of(NamedTuple):
    """One parameter's gradient or cotangent [T, out, in, kernel], and its matrices; a vector's is [T, elements]."""

    x: Tensor
    matrices: Meta


@dataclass(frozen=True, kw_only=True)
class Curvature(Rule):
    """φ ← φ − lr · M(g), with M(g)[p, q, r] = Σ out[p, o] g[o, i, f] in[i, q] kernel[r, f] (Park & Oliva 2019).

    A step takes two or three batched products for every weight, its adjoint as many again, and twice that for ∂/∂M.

    Args:
        lr: step size, fixed: a number, one for each inner step, or a function of the step.

    Raises:
        ValueError: a step size that is negative, not finite, or learned.
    """

    reads_gradient: ClassVar[bool] = False  # but for ∂/∂M

    lr: Rate
    learned: Curvatures | None = field(default_factory=Curvatures, repr=False)
    shapes: tuple[torch.Size, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        check_rate("Curvature.lr", self.lr)
        if isinstance(self.lr, Rates):
            raise ValueError(
                f"Curvature.lr must be a fixed step size, as its matrices are learned, got {type(self.lr).__name__}"
            )
        object.__setattr__(self, "lr", frozen(self.lr))

    def meta(self, rows: Rows, steps: int) -> Meta:
        """The step sizes [1 or K, 1], then the matrices of every parameter."""
        assert self.learned is not None, "a structure has no matrices"
        return (rates_of(self.lr, rows, steps), *self.learned.values)

    def structure(self) -> Curvature:
        """Without step size and matrices."""
        made = self.learned
        assert made is not None, "a structure has no matrices"
        return replace(self, lr=0.0, learned=None, shapes=made.shapes)

    def step(self, phi: Tensor, g: Tensor, state: State, k: int, meta: Meta) -> tuple[Tensor, State]:
        """φ − lr · M(g)."""
        rate, matrices = _rate(meta, k), self._matrices(meta)
        turned = [_turned(each) for each in self._apart(g, matrices)]
        return torch.addcmul(phi, self._together(turned, g), rate, value=-1), state

    def vjp(
        self, phi: Tensor, g: Tensor | None, state: State, k: int, meta: Meta, lam: Tensor, sigma: State,
        *, wanted: bool = False, loss: Tensor | None = None,
    ) -> Pulled:  # fmt: skip
        """a_g = Mᵀ(u) with u = −lr · λ, and of every matrix what u says of it."""
        matrices = self._matrices(meta)
        u = _rate(meta, k) * -lam
        back = [_turned_back(each) for each in self._apart(u, matrices)]
        pulled = Pulled(lam, self._together(back, u), 1.0, ())
        if not wanted:
            return pulled
        assert g is not None, "the gradient of a matrix reads the inner gradient"
        found: list[Tensor] = [u.new_zeros(u.shape[0], *meta[0].shape)]  # the step size is fixed
        for each, of_u in zip(self._apart(g, matrices), self._apart(u, matrices), strict=True):
            found += _of_matrices(each, of_u.x)
        return pulled._replace(meta=tuple(found))

    def _matrices(self, meta: Meta) -> list[Meta]:
        """Those of every parameter."""
        rest = iter(meta[1:])
        return [tuple(next(rest) for _ in KINDS[min(len(shape), 3)]) for shape in self.shapes]

    def _apart(self, row: Tensor, matrices: Sequence[Meta]) -> list[_Of]:
        """A row [T, P] as what each parameter has of it."""
        widths = [shape.numel() + pad for shape, pad in zip(self.shapes, self._padding(row), strict=True)]
        pieces = row.split_with_sizes(widths, 1)
        flat = [
            piece[:, : shape.numel()].reshape(-1, *_flat(shape))
            for piece, shape in zip(pieces, self.shapes, strict=True)
        ]
        return [_Of(*pair) for pair in zip(flat, matrices, strict=True)]

    def _padding(self, row: Tensor) -> list[int]:
        """Unused values behind each parameter, to 16 bytes: `fastmeta.program.layout.Layout`."""
        align = max(1, 16 // row.dtype.itemsize)
        pads = [-shape.numel() % align for shape in self.shapes]
        assert sum(pads) + sum(shape.numel() for shape in self.shapes) == row.shape[1], "rows are laid out another way"
        return pads

    def _together(self, pieces: Sequence[Tensor], like: Tensor) -> Tensor:
        """And back, the padding zero."""
        parts: list[Tensor] = []
        for piece, pad in zip(pieces, self._padding(like), strict=True):
            parts.append(piece.flatten(1))
            if pad:
                parts.append(like.new_zeros(like.shape[0], pad))
        return torch.cat(parts, 1)


def _flat(shape: torch.Size) -> tuple[int, ...]:
    """[elements], [out, in] or [out, in, kernel]."""
    if len(shape) < 2:
        return (shape.numel(),)
    return tuple(shape) if len(shape) == 2 else (*shape[:2], shape[2:].numel())


def _rate(meta: Meta, k: int) -> Tensor:
    """[1], that of step k."""
    rates = meta[0]
    return rates[k if rates.shape[0] > 1 else 0]


def _by_out(x: Tensor, matrix: Tensor) -> Tensor:
    """Σ_o matrix[p, o] x[t, o, ...]."""
    return torch.matmul(matrix, x.flatten(2)).view(x.shape)


def _by_in(x: Tensor, matrix: Tensor) -> Tensor:
    """Σ_i x[t, o, i, ...] matrix[i, q]."""
    return torch.matmul(x, matrix) if x.dim() == 3 else torch.matmul(matrix.mT, x)


def _turned(of: _Of) -> Tensor:
    """M(x)."""
    x, matrices = of
    if x.dim() == 2:
        return x * matrices[0]
    if x.dim() == 4:
        x = torch.matmul(x, matrices[2].mT)
    return _by_out(_by_in(x, matrices[1]), matrices[0])


def _turned_back(of: _Of) -> Tensor:
    """Mᵀ(x)."""
    x, matrices = of
    if x.dim() == 2:
        return x * matrices[0]
    x = _by_in(_by_out(x, matrices[0].mT), matrices[1].mT)
    return torch.matmul(x, matrices[2]) if x.dim() == 4 else x


def _of_matrices(of: _Of, u: Tensor) -> list[Tensor]:
    """∂⟨u, M(x)⟩/∂ each matrix, a task at a time, [T, *shape]."""
    x, matrices = of
    if x.dim() == 2:
        return [u * x]
    by_kernel = torch.matmul(x, matrices[2].mT) if x.dim() == 4 else x
    before_out = _by_in(by_kernel, matrices[1])
    of_out = torch.matmul(u.flatten(2), before_out.flatten(2).mT)
    rest = _by_out(u, matrices[0].mT)
    of_in = torch.einsum("toi...,toq...->tiq", by_kernel, rest)
    if x.dim() == 3:
        return [of_out, of_in]
    of_kernel = torch.einsum("toqr,toqf->trf", rest, _by_in(x, matrices[1]))
    return [of_out, of_in, cast(Tensor, of_kernel)]
