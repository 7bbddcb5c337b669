"""The query loss of all tasks, asked for at the fast weights where it counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .adjoint import Cotangents
from .objective import Context, Data, Objective, Slopes, among_all


class QueryPass:
    """The query loss as an adjoint asks for it: at φ_K, or with `weights` at every φ_k that has one.

    Args:
        outer: the query set's objective.
        data: the query set; behind the support set's inputs where batch norm takes its statistics from those.
        asked: the steps k whose query loss counts.
        weights: [K + 1]; None: one.
        whole: whether all else than φ gets a gradient too.
        batch: samples of the query set that count at φ_k, its k-th slice, cyclically; None: all of them.
    """

    def __init__(
        self, outer: Objective, data: Data, context: Context, asked: Sequence[int], weights: Tensor | None,
        *, steps: int, whole: bool, batch: int | None = None,
    ) -> None:  # fmt: skip
        self._outer, self._data, self._context, self._asked = outer, data, context, asked
        self._weights, self._steps, self._whole, self._batch = weights, steps, whole, batch
        self._losses: dict[int, Tensor] = {}
        self._outputs: dict[int, list[Tensor]] = {}

    def _weighted(self, k: int, x: Tensor) -> Tensor:
        return x if self._weights is None else x * self._weights[k]

    def value(self, k: int, phi: Tensor) -> None:
        """The loss alone."""
        self._evaluate(k, phi, keep=False)

    def _evaluate(self, k: int, phi: Tensor, *, keep: bool) -> Any:
        outer = self._outer
        at = outer.evaluate(phi, self._seen(k), self._context.at(k, outer.plan, query=True), keep=keep)
        if k == self._steps or self._batch is not None:
            self._outputs[k] = at.outputs
        if k in self._asked:
            self._losses[k] = self._weighted(k, outer.losses(at))
        return at

    def __call__(self, k: int, phi: Tensor) -> Cotangents | None:
        """Weight times gradient at φ_k."""
        if k not in self._asked:
            if k == self._steps:
                self.value(k, phi)  # for the outputs
            return None
        at = self._evaluate(k, phi, keep=True)
        slopes, _ = self._outer.gradient(at, self._seen(k), whole=self._whole)
        rows = self._data.rows(self._batch, k)
        if rows is not None and slopes.data:
            data = (*self._data.inputs, *self._data.targets)
            ds = tuple(among_all(d, x, rows) for d, x in zip(slopes.data, data, strict=True))
            slopes = slopes._replace(data=ds)
        return self.cotangents(slopes, k)

    def _seen(self, k: int) -> Data:
        """The query samples that count at φ_k."""
        rows = self._data.rows(self._batch, k)
        return self._data if rows is None else self._data.take(rows, 1)

    @property
    def outputs(self) -> list[Tensor]:
        """Of the module at φ_K; where every φ_k has samples of its own, all of these, one behind another."""
        passes = [self._outputs[k] for k in sorted(self._outputs)]
        if len(passes) == 1:
            return passes[0]
        visible = len(passes[0]) - self._outer.plan.hidden
        joined = zip(*(ys[:visible] for ys in passes), strict=True)
        return [torch.cat(ys, 1) if ys[0].dim() > 1 else torch.stack(ys, 1) for ys in joined]

    def cotangents(self, slopes: Slopes, k: int) -> Cotangents:
        """Slopes of the query set's objective, whose first rows may be the support set's."""
        inputs = len(self._data.inputs)
        skip, data = self._outer.skip, [None if d is None else self._weighted(k, d) for d in slopes.data]
        support: tuple[Tensor | None, ...] = ()
        if skip and data:
            support = tuple(None if d is None else d[:, :skip] for d in data[:inputs])
            data = [d if d is None or i >= inputs else d[:, skip:] for i, d in enumerate(data)]
        shared = None if slopes.shared is None else self._weighted(k, slopes.shared)
        return Cotangents(self._weighted(k, slopes.phi), shared, (), support, tuple(data))

    @property
    def losses(self) -> Tensor:
        """[T], weighted."""
        first, *rest = [self._losses[k] for k in sorted(self._losses)]
        return torch.stack([first, *rest]).sum(0) if rest else first
