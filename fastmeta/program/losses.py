"""The inner and outer loss as an op: cross-entropy and mean squared error are known, any other is run once as the
module is, and becomes a plan of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.ops.base import Loss as LossOp
from fastmeta.ops.base import MaybeTensors, Needs
from fastmeta.ops.cross_entropy import CrossEntropy
from fastmeta.ops.mse import MSE

from .plan import Gradients, LossPlan, Plan, Tape
from .program import LossRun, leaves_of
from .targets import check_class_targets, check_labels
from .trace import Untraceable
from .tree import Tree

Loss = Callable[[Tree, Tree], Tensor]  # (outputs, targets) -> a scalar for one task


@dataclass
class _Pass:
    """What the sweeps of a planned loss leave for each other."""

    losses: Tensor  # [T]
    tape: Tape
    cotangents: list[Any] | None = None  # inside the plan, of the loss's own gradient


@dataclass(frozen=True)
class PlannedLoss(LossOp[_Pass, Tape]):
    """A loss as a plan: its sweeps are those of its calls."""

    behind: LossPlan
    title: str

    @property
    def name(self) -> str:
        return self.title

    def _split(self, given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Arguments as the plan's parameters and inputs."""
        places: list[Any] = [None] * len(self.behind.moves)
        for at, x in zip(self.behind.place_of, given, strict=True):
            places[at] = x if places[at] is None else places[at]
        pairs = list(zip(places, self.behind.moves, strict=True))
        return [x for x, m in pairs if m], [x for x, m in pairs if not m]

    def _joined(self, found: Gradients, needs: Needs) -> MaybeTensors:
        """Cotangents of the plan's parameters and inputs as those of the arguments."""
        params, inputs = iter(found.params), iter(found.inputs)
        places: list[Tensor | None] = [next(params) if m else next(inputs) for m in self.behind.moves]
        joined: list[Tensor | None] = []
        for at, need in zip(self.behind.place_of, needs, strict=True):
            joined.append(places[at] if need else None)
            places[at] = None  # one that is handed twice has one cotangent
        return tuple(joined)

    def _whole(self, needs: Needs) -> bool:
        """Whether anything but what moves wants a cotangent."""
        return any(need and not self.behind.moves[at] for at, need in zip(self.behind.place_of, needs, strict=True))

    def prepare(self, *inputs: Tensor) -> _Pass:
        params, rest = self._split(inputs)
        keys = inputs[0].new_zeros(inputs[0].shape[0], dtype=torch.int64)
        (losses,), tape = self.behind.plan.forward(params, (), rest, (), keys)
        return _Pass(losses, tape)

    def value(self, saved: _Pass) -> Tensor:
        return saved.losses

    def backward(self, saved: _Pass, dy: Tensor | None, needs: Needs) -> MaybeTensors:
        seed = torch.ones_like(saved.losses) if dy is None else dy
        found, saved.cotangents = self.behind.plan.backward(saved.tape, [seed], keep=True, whole=self._whole(needs))
        return self._joined(found, needs)

    def forward_dot(self, saved: _Pass, inputs_dot: MaybeTensors) -> tuple[None, Tape]:
        params_dot, _ = self._split(inputs_dot)
        return None, self.behind.plan.forward_dot(saved.tape, params_dot)[1]

    def backward_dot(
        self, saved: _Pass, saved_dot: Tape, dy: Tensor | None, dy_dot: Tensor | None, needs: Needs
    ) -> MaybeTensors:
        assert saved.cotangents is not None, "the tangent of a gradient follows the gradient"
        seed = torch.zeros_like(saved.losses) if dy_dot is None else dy_dot
        return self._joined(self.behind.plan.backward_dot(saved.tape, saved_dot, saved.cotangents, [seed]), needs)


def known_loss(loss: Loss) -> CrossEntropy | MSE | None:
    """The op of a loss that has one: `F.cross_entropy`, `F.mse_loss` or their modules, with reduction="mean"."""
    options: dict[str, Any] = {}
    if isinstance(loss, functools.partial) and not loss.args:
        loss, options = loss.func, dict(loss.keywords)
    if type(loss) is nn.CrossEntropyLoss:
        names = ("weight", "ignore_index", "reduction", "label_smoothing")
        loss, options = F.cross_entropy, {name: getattr(loss, name) for name in names}
    elif type(loss) is nn.MSELoss:
        loss, options = F.mse_loss, {"reduction": loss.reduction}
    if options.pop("reduction", "mean") != "mean" or options.pop("weight", None) is not None:
        return None
    if loss is F.cross_entropy and options.keys() <= {"ignore_index", "label_smoothing"}:
        return CrossEntropy(options.get("label_smoothing", 0.0), options.get("ignore_index", -100))
    return MSE() if loss is F.mse_loss and not options else None


def run_of(name: str, loss: Loss, targets: Tree, wanted: Sequence[bool], *, skip: int = 0) -> LossRun | None:
    """What is to be run behind the module of a loss that has no op of its own."""
    given = leaves_of(targets)
    op = known_loss(loss)
    if len(given) == 1 and op is not None and not (isinstance(op, CrossEntropy) and given[0].is_floating_point()):
        return None
    return LossRun(name, loss, targets, wanted, skip)


def loss_op(name: str, loss: Loss, plan: Plan, targets: Tree, *, skip: int = 0) -> LossOp:
    """The op of `loss` between a plan's outputs and a tree of targets [T, N, ...].

    Its inputs are the leaves of the outputs, the hidden ones among them, then the leaves of the targets; it gives one
    loss per task [T]. `skip` rows of the plan's outputs are support samples in front, which the loss does not see.

    Raises:
        ValueError: targets of another shape than `F.mse_loss` wants.
        Untraceable: a loss with an op of its own, on a module that returns something else than a tensor.
    """
    title = getattr(loss, "__name__", type(loss).__name__)
    if plan.loss is not None:
        return PlannedLoss(plan.loss, title)
    op, shapes = known_loss(loss), plan.sample_shapes(skip)
    assert op is not None, "any other loss was run behind the module"
    if len(shapes) != 1:
        raise Untraceable(f"{name} is {title}, and the module returns {len(shapes)} tensors")
    (given,) = leaves_of(targets)
    if isinstance(op, MSE) and tuple(given.shape[1:]) != shapes[0]:
        raise ValueError(
            f"{name}: F.mse_loss wants targets of the outputs' shape, {list(shapes[0])} a task, got "
            f"{list(given.shape[1:])}; reshape one of them: broadcasting would average the wrong pairs"
        )
    return op


def check_targets_of(
    name: str, loss: Loss, plan: Plan, targets: Sequence[Tensor], *, skip: int = 0, batch: int | None = None
) -> None:
    """Where `loss` is cross-entropy: targets of a shape that fits the logits'.

    The plan may stand for a part of the samples, a `batch` of them, while the targets are of all.
    """
    shapes = plan.sample_shapes(skip)
    if isinstance(known_loss(loss), CrossEntropy) and len(shapes) == len(targets) == 1:
        (given,) = targets
        samples = shapes[0][0] if batch is None else given.shape[1]
        check_class_targets(name, given, (given.shape[0], samples, *shapes[0][1:]))


def check_labels_of(name: str, loss: LossOp | None, plan: Plan, targets: Sequence[Tensor]) -> None:
    """Where `loss` is cross-entropy of labels: each within the logits' classes."""
    if isinstance(loss, CrossEntropy):
        (labels,), (logits,) = targets, plan.output_shapes
        check_labels(name, labels, logits[1], ignore_index=loss.ignore_index)
