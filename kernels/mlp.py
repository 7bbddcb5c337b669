"""Launches `mlp_loop`: adapt, query pass, adjoint and mean over tasks of one perceptron, on tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .launch import launch
from .mean_over_tasks import mean_kernel
from .mlp_loop import adapt_kernel, adjoint_kernel, apply_kernel
from .tiles import MOST_REGISTERS, STAGES, block, dot_precision, streams, warps


@dataclass(frozen=True)
class Chain:
    """A perceptron: widths D_0 … D_L, where each weight and bias lies in a row of `size` values, activations."""

    dims: tuple[int, ...]
    w_at: tuple[int, ...]
    b_at: tuple[int, ...]  # −1: no bias
    acts: tuple[int, ...]  # places in activation.KINDS
    args: tuple[float, ...]  # two for each activation
    size: int  # P

    def room(self, samples: int) -> tuple[int, ...]:
        """Places in a row of scratch (see `mlp_scratch.py`): inputs, pre-activations, two of cotangents, the end."""
        widths = tuple(map(block, self.dims))
        return tuple(accumulate((*widths, max(widths), max(widths)), lambda at, w: at + block(samples) * w, initial=0))

    def constants(self) -> dict[str, Any]:
        """The kernels' compile-time arguments."""
        return {
            "P": self.size,
            "DEPTH": len(self.w_at),
            "DIMS": self.dims,
            "BLOCKS": tuple(map(block, self.dims)),
            "W_AT": self.w_at,
            "B_AT": self.b_at,
            "ACTS": self.acts,
            "ARGS": self.args,
        }


@dataclass(frozen=True)
class LossRule:
    """ "mse", "cross_entropy", "given" (cotangents of the outputs in place of targets) or "none"."""

    name: str
    smoothing: float = 0.0
    ignore_index: int = -100

    def constants(self) -> dict[str, Any]:
        return {"LOSS": self.name, "SMOOTHING": self.smoothing, "IGNORE": self.ignore_index}


@dataclass(frozen=True)
class InnerRule:
    """K steps of "sgd" (momentum, nesterov, weight decay) or "adam" (beta1, beta2, eps), on `batch` samples each."""

    name: str
    hyper: tuple[float, float, float]
    lr: float
    steps: int
    batch: int | None

    @property
    def states(self) -> int:
        """Rows of state a task: moments or velocity."""
        return 2 if self.name == "adam" else int(self.hyper[0] > 0)

    def schedule(self, device: torch.device) -> Tensor:
        """[K, 4] float32: learning rate, 1 − beta1^(k+1), 1 − beta2^(k+1), and a zero."""
        beta1, beta2 = self.hyper[:2] if self.name == "adam" else (0.0, 0.0)
        rows = [(self.lr, 1.0 - beta1 ** (k + 1), 1.0 - beta2 ** (k + 1), 0.0) for k in range(self.steps)]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).float().to(device)

    def constants(self) -> dict[str, Any]:
        return {"RULE": self.name, "HYPER": self.hyper, "STATES": self.states}


class Adapted(NamedTuple):
    """What `adapt` leaves on the device."""

    phis: Tensor  # [R · T + 1, P]: R sets of the tasks' weights, then θ
    states: Tensor  # [R, T, states, P]
    sets: int  # R: K, or 2 where only φ_K is wanted
    bad: Tensor  # [T]: NaN where the support inputs hold a NaN or infinity

    def final(self, tasks: int, steps: int) -> Tensor:
        """φ_K [T, P]."""
        if steps == 0:
            return self.phis[-1].expand(tasks, -1)
        at = (steps - 1) % self.sets * tasks
        return self.phis[at : at + tasks]


@dataclass
class MLP:
    """The kernels for one perceptron, inner loop and precision. Tensors are float32 and contiguous, labels int64."""

    chain: Chain
    inner: InnerRule
    inner_loss: LossRule
    precision: str  # "float32", "tf32" or "bfloat16"
    _schedules: dict[torch.device, Tensor] = field(default_factory=dict)

    def _schedule(self, device: torch.device) -> Tensor:
        if device not in self._schedules:
            self._schedules[device] = self.inner.schedule(device)
        return self._schedules[device]

    def _common(self, samples: int) -> dict[str, Any]:
        constants = self.chain.constants()
        size = block(samples)
        blocks = (*constants["BLOCKS"], size)
        return {
            **constants, "BN": size, "ROOM": self.chain.room(samples), "STREAM": self._streams(samples),
            "PRECISION": dot_precision(self.precision, blocks), "num_warps": warps(blocks), "num_stages": STAGES,
            "maxnreg": MOST_REGISTERS if self._streams(samples) else None,
        }  # fmt: skip

    def _room(self, x: Tensor, samples: int, halves: int) -> Tensor:
        """Scratch for all tasks' activations and, as a second half, their tangents; none where registers hold them."""
        room = self.chain.room(samples)
        return x.new_empty(x.shape[0] if self._streams(samples) else 0, halves, room[-1])

    def _streams(self, samples: int) -> bool:
        return streams((*self.chain.constants()["BLOCKS"], block(samples)), self.inner.states)

    def _loop(self, x: Tensor, lr: Tensor | None) -> dict[str, Any]:
        samples = x.shape[1]
        batch = self.inner.batch or samples
        return {
            **self._common(batch), **self.inner.constants(), **self.inner_loss.constants(),
            "K": self.inner.steps, "N": samples, "B": batch, "LR_EACH": lr is not None,
        }  # fmt: skip

    def adapt(self, theta: list[Tensor], x: Tensor, y: Tensor, *, keep: bool, lr: Tensor | None = None) -> Adapted:
        """K inner steps of every task on x [T, N, D_0], y [T, N, D_L] or [T, N]; `theta` are the pieces of a row [P].

        `keep` leaves all φ_k for `adjoint`. `lr` [K, P] gives every parameter its own learning rate in every step.
        """
        tasks, steps, states = x.shape[0], self.inner.steps, self.inner.states
        sets = max(1, steps if keep else min(steps, 2))
        phis = x.new_empty(sets * tasks + 1, self.chain.size)
        torch.cat(theta, out=phis[-1])
        adapted = Adapted(phis, x.new_empty(sets, tasks, states, self.chain.size), sets, x.new_empty(tasks))
        schedule, room = self._schedule(x.device), self._room(x, self.inner.batch or x.shape[1], 1)
        launch(
            adapt_kernel, (tasks,), phis, adapted.states, adapted.bad, x, y, schedule if lr is None else lr, schedule,
            room, tasks, sets, **self._loop(x, lr),
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
            LAST=finite is not None, **loss.constants(), **self._common(samples),
        )  # fmt: skip
        return outputs, losses

    def adjoint(
        self, adapted: Adapted, lam: Tensor, x: Tensor, y: Tensor, *, finite: Tensor | None = None,
        lr: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Turns `lam` [T, P] from λ_K into λ_0. `finite` as in `apply`."""
        tasks, states = x.shape[0], self.inner.states
        sigma = x.new_empty(tasks, states, self.chain.size)
        v = x.new_empty(tasks if self.inner.name == "adam" else 0, self.chain.size)
        schedule, room = self._schedule(x.device), self._room(x, self.inner.batch or x.shape[1], 2)
        launch(
            adjoint_kernel, (tasks,), adapted.phis, lam, sigma, adapted.states, v, adapted.bad,
            adapted.bad if finite is None else finite, x, y, schedule if lr is None else lr, schedule, room, tasks,
            adapted.sets, LAST=finite is not None, **self._loop(x, lr),
        )  # fmt: skip


def mean_over_tasks(lam: Tensor, losses: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the finite tasks: of the adjoints [T, P] → [P], and of the losses [T] → []."""
    tasks, size = lam.shape
    gradient, loss = lam.new_empty(size), lam.new_empty(())
    width = 512  # 128 bits a thread
    launch(
        mean_kernel, (triton.cdiv(size, width),), lam, losses, finite, gradient, loss, T=tasks, P=size, BLOCK=width,
        num_warps=4,
    )  # fmt: skip
    return gradient, loss
