"""Launches the last, linear layer of a network and its loss: one by one, or as the head of a convolutional one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton
from torch import Tensor
from triton import knobs

from .description import Linear, LossRule, block
from .head import head_kernel
from .launch import launch
from .linear_stage import LinearStage, LinearValues
from .loss import loss_kernel
from .mean_over_tasks import losses_kernel
from .sweep import NO_NORM, Below, Cotangent, Dual, Sink, Weights
from .tiles import MOST_REGISTERS, HeadTiles, head_tiles, loss_tiles, operand_type


class Target(NamedTuple):
    """What outputs are held to: the loss, its targets, and samples in front that are in no loss."""

    rule: LossRule
    y: Tensor
    lent: int = 0


class Values(NamedTuple):
    """Where a query pass leaves every task's loss [T], and what marks the tasks that are not finite."""

    losses: Tensor
    bad: Tensor


@dataclass(frozen=True)
class LinearTail:
    """The layer, then the loss."""

    stage: LinearStage

    def forward(self, weights: Weights, x: Dual, known: LinearValues | None) -> LinearValues:
        """As `LinearStage.forward`."""
        return self.stage.forward(weights, (x,), known, 0)

    def value(self, weights: Weights, at: LinearValues, target: Target, into: Values) -> Tensor:
        """Outputs [T, N, OUT]; the loss goes `into` its place."""
        if target.rule.name in ("mse", "cross_entropy"):
            tasks, samples, classes = at.y.value.shape
            parts = into.losses.new_empty(tasks, triton.cdiv(samples, loss_tiles(classes)[0]))
            self._loss(at, target, parts, at.z, value=True)
            launch(
                losses_kernel, (tasks,), parts, *into, parts.shape[1],
                BLOCK=triton.next_power_of_2(parts.shape[1]), num_warps=4,
            )  # fmt: skip
        return at.y.value

    def backward(
        self, weights: Weights, at: LinearValues, target: Target, sink: Sink, below: Below | None,
        value: Values | None = None,
    ) -> tuple[Tensor, Cotangent | None]:  # fmt: skip
        """Outputs, with the loss where `value` asks for it, and the cotangent for the stage below."""
        outputs = at.y.value if value is None else self.value(weights, at, target, value)
        dz = at.z.like(operand_type(self.stage.precision))
        self._loss(at, target, dz.value, dz, value=False)
        found = self.stage.backward(weights, at, Cotangent(dz), sink, (below,))
        return outputs, found[0] if found else None

    def _loss(self, at: LinearValues, target: Target, parts: Tensor, dz: Dual, *, value: bool) -> None:
        dual = dz.dot is not None and not value
        tasks, samples, classes = at.y.value.shape
        rows, warps = loss_tiles(classes)
        launch(
            loss_kernel, (tasks * triton.cdiv(samples, rows),), *at.y.both, *at.z.both, target.y, parts, *dz.both,
            label=" ".join(filter(None, (target.rule.name, value * "value", dual * "dual"))), N=samples,
            LENT=target.lent, C=classes, BN=rows, BC=block(classes), VALUE=value, BACKWARD=not value, DUAL=dual,
            num_warps=warps, **target.rule.constants(), **self.stage.layer.act.constants(),
        )  # fmt: skip


@dataclass(frozen=True)
class HeadTail:
    """Both in one launch, for images [PIXELS, C] from the stage below, where `head_tiles` takes them."""

    layer: Linear
    size: int
    precision: str
    pixels: int
    channels: int

    def forward(self, weights: Weights, x: Dual, known: Dual | None) -> Dual:
        """Nothing yet: the images."""
        return x

    def value(self, weights: Weights, at: Dual, target: Target, into: Values) -> Tensor:
        """As `LinearTail.value`."""
        outputs, _ = self._run(weights, at, target, None, None, into)
        return outputs

    def backward(
        self, weights: Weights, at: Dual, target: Target, sink: Sink, below: Below | None, value: Values | None = None
    ) -> tuple[Tensor, Cotangent | None]:
        """As `LinearTail.backward`."""
        assert below is not None, "a head comes behind a convolution"
        return self._run(weights, at, target, sink, below, value)

    def _run(
        self, weights: Weights, x: Dual, target: Target, sink: Sink | None, below: Below | None, into: Values | None
    ) -> tuple[Tensor, Cotangent | None]:
        layer, (tasks, samples), dual = self.layer, x.value.shape[:2], x.dot is not None
        tiles = head_tiles(self.precision, samples, self.pixels, self.channels, layer.outputs)
        assert isinstance(tiles, HeadTiles), "a head is made where there are tiles"
        rows = x.value
        outputs = rows if into is None else into.losses.new_empty(tasks, samples, layer.outputs)
        losses, bad = (rows, rows) if into is None else into
        dx, norm, programs = x, None, 1
        if below is not None:
            dx, norm = below.z.like(operand_type(self.precision)), below.norm
            programs = triton.cdiv(self.pixels, tiles.per)
        parts = None
        if norm is not None:
            parts = norm.stats.value.new_empty(tasks, programs, 4 if dual else 2, self.channels)
        to, ends, options = ((rows,) * 7, (0, 0), _NO_SINK) if sink is None else sink[:3]
        size = (1, 1) if norm is None else norm.size
        launch(
            head_kernel, (tasks * programs,), *weights.phi.both, *x.both, target.y, outputs, losses, bad, *dx.both,
            *to, *((rows,) * 4 if norm is None else norm.tensors), rows if parts is None else parts, weights.row, *ends,
            layer.inputs, label=self._label(target, into is not None, dual, options["SINK"]), N=samples,
            LENT=target.lent,
            IN=layer.inputs, OUT=layer.outputs, W_AT=layer.w_at,
            BIAS=layer.b_at - layer.w_at if layer.b_at >= 0 else 0, P=self.size, BN=tiles.samples, BC=tiles.outputs,
            BI=tiles.inputs, UNIT=tiles.per * self.channels, PER=tiles.per, BU=block(tiles.per * self.channels),
            VALUE=into is not None, BACKWARD=sink is not None, DUAL=dual, C=self.channels, HP=size[0], WP=size[1],
            BP=32, BH=block(self.channels), KNOWN=knobs.runtime.interpret, PRECISION=tiles.precision,
            num_warps=tiles.warps, num_stages=1, maxnreg=MOST_REGISTERS, **target.rule.constants(), **options,
            **(NO_NORM if norm is None else norm.options),
        )  # fmt: skip
        return outputs, None if below is None else Cotangent(dx, parts)

    def _label(self, target: Target, value: bool, dual: bool, sink: str) -> str:
        sizes = f"{self.layer.inputs}→{self.layer.outputs}"
        return " ".join(filter(None, (sizes, target.rule.name, value * "value", dual * "dual", sink)))


_NO_SINK = {
    "SINK": "none", "RULE": "sgd", "HYPER": (0.0, 0.0, 0.0), "STATES": 0, "LR_EACH": False, "DIRECTIONS": False,
}  # fmt: skip
"""What a kernel is told where no gradient goes anywhere."""
