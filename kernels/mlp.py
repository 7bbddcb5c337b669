"""Launches `mlp_loop`: adapt, query pass, adjoint and mean over tasks of one perceptron, on tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor

from .description import Adapted, Chain, InnerRule, LossRule, Rates, block
from .launch import launch
from .mean_over_tasks import mean_kernel
from .mlp_loop import adapt_kernel, adjoint_kernel, apply_kernel
from .tiles import MEAN_TASKS, MOST_REGISTERS, STAGES, LoopTiles, dot_precision, loop_tiles, mean_tiles


@dataclass(frozen=True)
class MLP:
    """The kernels for one perceptron, inner loop and precision. Tensors are float32 and contiguous, labels int64."""

    chain: Chain
    inner: InnerRule
    inner_loss: LossRule
    precision: str  # "float32", "tf32" or "bfloat16"

    def _tiles(self, tasks: int, samples: int) -> LoopTiles:
        return loop_tiles(self.chain.dims, samples, self.inner.states, tasks)

    def _common(self, tasks: int, samples: int) -> dict[str, Any]:
        tiles = self._tiles(tasks, samples)
        return {
            **self.chain.constants(), "BLOCKS": tiles.columns, "BN": block(samples), "ROOM": self.chain.room(samples),
            "STREAM": tiles.streams, "PRECISION": dot_precision(self.precision), "num_warps": tiles.warps,
            "num_stages": STAGES, "maxnreg": MOST_REGISTERS if tiles.streams else None,
        }  # fmt: skip

    def _room(self, x: Tensor, samples: int, halves: int) -> Tensor:
        """Scratch for all tasks' activations and, as a second half, their tangents; none where registers hold them."""
        room = self.chain.room(samples)
        return x.new_empty(x.shape[0] if self._tiles(x.shape[0], samples).streams else 0, halves, room[-1])

    def _loop(self, x: Tensor, learning: Rates) -> dict[str, Any]:
        samples = x.shape[1]
        batch = self.inner.batch or samples
        return {
            **self._common(x.shape[0], batch), **self.inner.constants(), **learning.constants(),
            **self.inner_loss.constants(), "K": self.inner.steps, "N": samples, "B": batch,
        }  # fmt: skip

    def adapt(
        self, theta: list[Tensor], x: Tensor, y: Tensor, *, rates: Tensor, keep: bool, directions: Tensor | None = None
    ) -> Adapted:
        """K inner steps of every task on x [T, N, D_0], y [T, N, D_L] or [T, N]; `theta` are the pieces of a row [P].

        `rates` are the learning rates, of any sign: [K], what `InnerRule.schedule` makes of it, or [K, P] for one of
        every parameter's value in every step. `keep` leaves all φ_k for `adjoint`. `directions` [K, T, P] takes the
        u_k of φ_{k+1} = φ_k − rates_k u_k.
        """
        learning = Rates.of(self.inner, rates, directions, x.shape[0], self.chain.size)
        adapted = self.inner.start(theta, x, keep=keep)
        room = self._room(x, self.inner.batch or x.shape[1], 1)
        launch(
            adapt_kernel, (x.shape[0],), adapted.phis, adapted.states, adapted.bad, x, y,
            *learning.tensors, room, x.shape[0], adapted.sets, **self._loop(x, learning),
        )  # fmt: skip
        return adapted

    def apply(
        self, adapted: Adapted, steps: int, x: Tensor, y: Tensor, loss: LossRule, *, lam: Tensor | None,
        finite: Tensor | None = None, reptile: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Outputs [T, M, D_L] at φ after `steps` and losses [T] (none without a loss).

        `lam` [T, P] takes the gradient at φ, or θ − φ for `reptile`; `finite` [T] uint8, where this ends the meta-step,
        says which tasks stayed finite, and the others' `lam` becomes zero.
        """
        tasks, samples = x.shape[:2]
        outputs, losses = x.new_empty(tasks, samples, self.chain.dims[-1]), x.new_empty(tasks)
        nothing = losses
        launch(
            apply_kernel, (tasks,), adapted.phis, nothing if lam is None else lam, adapted.bad,
            nothing if finite is None else finite, x, y, outputs, losses, self._room(x, samples, 1), tasks,
            adapted.sets, K=steps, N=samples, BACKWARD=lam is not None and not reptile, REPTILE=reptile,
            LAST=finite is not None, **loss.constants(), **self._common(tasks, samples),
        )  # fmt: skip
        return outputs, losses

    def adjoint(
        self, adapted: Adapted, lam: Tensor, x: Tensor, y: Tensor, *, rates: Tensor, finite: Tensor | None = None,
        directions: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Turns `lam` [T, P] from λ_K into λ_0. `rates` are those of `adapt`, `finite` as in `apply`.

        `directions` as `adapt` left them turn, in place, into every task's derivatives −λ_{k+1} u_k by its rates
        [K, T, P], zero in the padding; those of a task that diverged may be NaN.
        """
        learning = Rates.of(self.inner, rates, directions, x.shape[0], self.chain.size)
        tasks, states = x.shape[0], self.inner.states
        sigma = x.new_empty(tasks, states, self.chain.size)
        v = x.new_empty(tasks if self.inner.name == "adam" else 0, self.chain.size)
        room = self._room(x, self.inner.batch or x.shape[1], 2)
        launch(
            adjoint_kernel, (tasks,), adapted.phis, lam, sigma, adapted.states, v, adapted.bad,
            adapted.bad if finite is None else finite, x, y, *learning.tensors, room, tasks, adapted.sets,
            LAST=finite is not None, **self._loop(x, learning),
        )  # fmt: skip


def mean_over_tasks(lam: Tensor, losses: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the finite tasks: of the adjoints [T, P] → [P], and of the losses [T] → []."""
    counts = finite
    while lam.shape[0] > MEAN_TASKS:
        lam, losses, counts = _sums(lam, losses, counts, last=False)
    gradient, loss, _ = _sums(lam, losses, counts, last=True)
    return gradient[0], loss[0]


def _sums(lam: Tensor, losses: Tensor, counts: Tensor, *, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What `mean_kernel` leaves of shares of tasks: λ_0 [shares, P], losses and counts [shares]."""
    tasks, size = lam.shape
    shares, tiles = mean_tiles(tasks)
    gradient, loss, count = lam.new_empty(shares, size), lam.new_empty(shares), lam.new_empty(shares)
    launch(
        mean_kernel, (shares * triton.cdiv(size, tiles["BLOCK"]),), lam, losses, counts, gradient, loss, count, tasks,
        P=size, LAST=last, **tiles,
    )  # fmt: skip
    return gradient, loss, count
