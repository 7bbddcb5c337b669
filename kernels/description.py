"""What the launchers are told: a network, a loss, an inner loop; and what an adaptation leaves on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .activation import IDENTITY
from .launch import also


def block(size: int) -> int:
    """`size` padded to a power of two; `tl.dot` takes none below 16 (Triton 3.6)."""
    return max(16, 1 << (size - 1).bit_length())


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


class Act(NamedTuple):
    """An activation: its place in activation.KINDS and its two arguments."""

    kind: int = IDENTITY
    a: float = 0.0
    b: float = 0.0

    def constants(self) -> dict[str, Any]:
        """The kernels' compile-time arguments."""
        return {"ACT": self.kind, "A": self.a, "B": self.b}


class Linear(NamedTuple):
    """y = f(x Wᵀ + b): widths, and where W and b (−1: none) lie in a row of φ."""

    inputs: int
    outputs: int
    w_at: int
    b_at: int
    act: Act


class Conv(NamedTuple):
    """y = pool(f(norm(x ∗ W + b))) of images [H, W, C], with W [O, KERNEL, KERNEL, C] and zeros around the image.

    `pool` takes windows of 2 × 2: "max", "mean" or "none". Without `norm`, which is a batch norm by a batch's own
    statistics, there is no eps, γ or β; −1 is the place of a parameter that is not there.
    """

    height: int
    width: int
    channels: int
    filters: int
    kernel: int
    stride: int
    padding: int
    w_at: int
    b_at: int
    norm: bool
    eps: float
    gamma_at: int
    beta_at: int
    act: Act
    pool: str

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the convolution's result."""
        height, width = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in (self.height, self.width))
        return height, width

    @property
    def pooled(self) -> tuple[int, int]:
        """Height and width of y."""
        return pooled(self.out, self.pool)

    @property
    def geometry(self) -> tuple[int, ...]:
        """As in `pixels.py`."""
        sizes = (self.height, self.width, self.channels, *self.out, self.filters)
        return (*sizes, self.kernel, self.stride, self.padding)


class Sum(NamedTuple):
    """y = pool(f(a + b)) of two stages' images [H, W, C], where branches join. It has no parameters."""

    height: int
    width: int
    filters: int
    act: Act
    pool: str

    w_at, b_at, gamma_at, beta_at, norm, eps = 0, -1, -1, -1, False, 0.0

    @property
    def out(self) -> tuple[int, int]:
        """As of `Conv`."""
        return self.height, self.width

    @property
    def pooled(self) -> tuple[int, int]:
        """As of `Conv`."""
        return pooled(self.out, self.pool)

    @property
    def geometry(self) -> tuple[int, ...]:
        """As of `Conv`: that of a convolution by one tap."""
        return (*self.out, self.filters, *self.out, self.filters, 1, 1, 0)


def pooled(size: tuple[int, int], pool: str) -> tuple[int, int]:
    """Height and width behind a pool."""
    return size if pool == "none" else (size[0] // 2, size[1] // 2)


class GlobalMean(NamedTuple):
    """Mean over an image's positions: [positions, channels] → [channels]."""

    positions: int
    channels: int


Stage = Linear | Conv | Sum | GlobalMean


@dataclass(frozen=True)
class Network:
    """Stages in an order in which they can run, of which the last is linear, and the length of a row of φ.

    `sources` says of which stages' outputs each stage takes its inputs; −1 is the network's input.
    """

    stages: tuple[Stage, ...]
    sources: tuple[tuple[int, ...], ...]
    size: int  # P

    def readers(self, stage: int) -> int:
        """How many stages take a stage's output."""
        return sum(sources.count(stage) for sources in self.sources)


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
    """K steps of "sgd" (momentum, nesterov, weight decay) or "adam" (beta1, beta2, eps), on `batch` samples each.

    Learning rates are arguments of the launchers, so that another one is no other kernel.
    """

    name: str
    hyper: tuple[float, float, float]
    steps: int
    batch: int | None

    @property
    def states(self) -> int:
        """Rows of state a task: moments or velocity."""
        return 2 if self.name == "adam" else int(self.hyper[0] > 0)

    @lru_cache(maxsize=64)  # noqa: B019  frozen and small, and a copy to a GPU waits for it
    def corrections(self, device: torch.device) -> Tensor:
        """[K, 4] float32: zero, Adam's 1 − beta1^(k+1) and 1 − beta2^(k+1), and a zero."""
        beta1, beta2 = self.hyper[:2] if self.name == "adam" else (0.0, 0.0)
        rows = [(0.0, 1.0 - beta1 ** (k + 1), 1.0 - beta2 ** (k + 1), 0.0) for k in range(self.steps)]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).float().to(device)

    def schedule(self, rates: Tensor) -> Tensor:
        """[K, 1, 4]: one learning rate a step [K], with the `corrections` beside it, as kernels read them.

        Launchers take it in the place of [K], of which they make it in every call: one small copy, which rates that
        stay the same need not cost.
        """
        return torch.cat((rates[:, None], self.corrections(rates.device)[:, 1:]), 1)[:, None]

    def start(self, theta: list[Tensor], like: Tensor, *, keep: bool) -> Adapted:
        """Room for the tasks of `like` [T, ...], with θ, whose pieces are given, in its place."""
        sets, tasks, size = max(1, self.steps if keep else min(self.steps, 2)), like.shape[0], sum(map(len, theta))
        phis = like.new_empty(sets * tasks + 1, size)
        also(torch.cat, theta, out=phis[-1])
        return Adapted(phis, like.new_empty(sets, tasks, self.states, size), sets, like.new_empty(tasks), [])

    def constants(self) -> dict[str, Any]:
        return {"RULE": self.name, "HYPER": self.hyper, "STATES": self.states}


class Rates(NamedTuple):
    """Learning rates of K steps, as kernels read them, and room for what their gradient asks for."""

    alpha: Tensor  # [K, P], or the schedule again
    schedule: Tensor  # [K, 4]: one rate a step and the corrections
    directions: Tensor | None  # [K, T, P]: the u_k of φ_{k+1} = φ_k − α_k u_k

    @classmethod
    def of(cls, inner: InnerRule, rates: Tensor, directions: Tensor | None, tasks: int, size: int) -> Rates:
        """From rates [K], [K, P] or an inner rule's `schedule`; kernels would read any other wrongly."""
        steps, wanted = inner.steps, (inner.steps, tasks, size)
        of_all, made, each = (steps,), (steps, 1, 4), (steps, size)
        assert rates.shape in (of_all, made, each), f"rates are {of_all} or {each}, not {tuple(rates.shape)}"
        assert rates.dtype == torch.float32, f"rates are float32, not {rates.dtype}"
        if directions is not None:
            assert directions.shape == wanted, f"directions are {wanted}, not {tuple(directions.shape)}"
            assert directions.dtype == torch.float32, f"directions are float32, not {directions.dtype}"
            assert directions.is_contiguous(), "directions are contiguous"
        if rates.dim() == 2:
            assert rates.is_contiguous(), "rates are contiguous"
            return cls(rates, inner.corrections(rates.device), directions)
        schedule = (inner.schedule(rates) if rates.dim() == 1 else rates).view(-1, 4)
        return cls(schedule, schedule, directions)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """For a kernel of all steps, which reads no directions where there are none."""
        return self.alpha, self.schedule, self.schedule if self.directions is None else self.directions

    def constants(self) -> dict[str, Any]:
        """The kernels' compile-time arguments, in which no value of a rate is."""
        return {"LR_EACH": self.alpha is not self.schedule, "DIRECTIONS": self.directions is not None}

    def part(self, tasks: slice) -> Rates:
        """Of some tasks."""
        return self if self.directions is None else self._replace(directions=self.directions[:, tasks])


class Adapted(NamedTuple):
    """What `adapt` leaves on the device."""

    phis: Tensor  # [R · T + 1, P]: R sets of the tasks' weights, then θ
    states: Tensor  # [R, T, states, P]
    sets: int  # R: K, or 2 where only φ_K is wanted
    bad: Tensor  # [T]: NaN where the support inputs hold a NaN or infinity
    values: list[Any]  # what went through the layers in every step, where that is kept

    def final(self, tasks: int, steps: int) -> Tensor:
        """φ_K [T, P]."""
        if steps == 0:
            return self.phis[-1].expand(tasks, -1)
        at = (steps - 1) % self.sets * tasks
        return self.phis[at : at + tasks]
