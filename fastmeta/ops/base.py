"""The contract of every operation: four sweeps, batched over tasks.

A sweep takes and gives tensors whose first dimension is the task. Parameters are inputs like any other, so a
computed weight (weight standardisation, a hypernetwork) or a tied one needs nothing special. A tangent that is
identically zero is `None`, which lets a first layer skip half of its work.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

Shape: TypeAlias = tuple[int, ...]
Saved: TypeAlias = Any  # what a sweep of any op keeps for the next one
Needs: TypeAlias = tuple[bool, ...]  # which inputs depend on a trainable parameter and so want a cotangent
MaybeTensors: TypeAlias = tuple[Tensor | None, ...]
S = TypeVar("S")  # what an op's forward sweep saves
D = TypeVar("D")  # what its tangent sweep saves


class Op(Generic[S, D]):
    """One differentiable operation. Subclasses are stateless: every tensor is an argument.

    Shapes in the ops' descriptions have the task dimension T in front. `saved` and `saved_dot` are private to an op:
    what its `forward` and `forward_dot` returned beside the value.
    """

    @property
    def name(self) -> str:
        """The op's file in `fastmeta/ops`, `kernels` and `tests`."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def forward(self, *inputs: Tensor) -> tuple[Any, S]:
        """Value of the op, and what the other sweeps need."""
        raise NotImplementedError

    def backward(self, saved: S, dy: Any, needs: Needs) -> MaybeTensors:
        """Cotangent of each input, `None` where `needs` is false."""
        raise NotImplementedError

    def forward_dot(self, saved: S, inputs_dot: MaybeTensors) -> tuple[Any, D]:
        """Tangent of the output along the inputs' tangents, of which one at least is given, and what `backward_dot`
        needs of it."""
        raise NotImplementedError

    def backward_dot(self, saved: S, saved_dot: D, dy: Any, dy_dot: Any, needs: Needs) -> MaybeTensors:
        """Tangent of what `backward` gives: of each input's cotangent, `None` where `needs` is false."""
        raise NotImplementedError


class Loss(Op[S, D]):
    """An op at the end: outputs and targets [T, N, ...] → one loss a task, [T].

    An inner step asks for gradients only, so the values are apart from what the sweeps need. In `backward` and
    `backward_dot` a cotangent of None is one for every task: the gradient of each task's own loss.
    """

    def prepare(self, *inputs: Tensor) -> S:
        """What `forward` leaves for the other sweeps."""
        raise NotImplementedError

    def value(self, saved: S) -> Tensor:
        """The losses [T]."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> tuple[Tensor, S]:
        saved = self.prepare(*inputs)
        return self.value(saved), saved

    def backward(self, saved: S, dy: Tensor | None, needs: Needs) -> MaybeTensors:
        raise NotImplementedError

    def forward_dot(self, saved: S, inputs_dot: MaybeTensors) -> tuple[None, D]:
        """What `backward_dot` needs. The losses' own tangents are wanted by nobody."""
        raise NotImplementedError

    def backward_dot(
        self, saved: S, saved_dot: D, dy: Tensor | None, dy_dot: Tensor | None, needs: Needs
    ) -> MaybeTensors:
        raise NotImplementedError


class LinearMap(Op[Shape, None]):
    """An op linear in its one input: all four sweeps are the map or its transpose."""

    def apply(self, x: Tensor) -> Tensor:
        """The map, of x [T, ...]."""
        raise NotImplementedError

    def transpose(self, shape: Shape, dy: Tensor) -> Tensor:
        """The transposed map, from the output's space to an input of `shape` ([T, ...])."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Shape]:
        (x,) = inputs
        return self.apply(x), tuple(x.shape)

    def backward(self, saved: Shape, dy: Tensor, needs: Needs) -> MaybeTensors:
        return (self.transpose(saved, dy),)

    def forward_dot(self, saved: Shape, inputs_dot: MaybeTensors) -> tuple[Tensor, None]:
        (x_dot,) = inputs_dot
        assert x_dot is not None, "an op without any tangent is not swept"
        return self.apply(x_dot), None

    def backward_dot(self, saved: Shape, saved_dot: None, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        return (self.transpose(saved, dy_dot),)


class Factors(NamedTuple):
    """What a bilinear op's forward sweep leaves."""

    x: Tensor
    w: Tensor


class FactorsDot(NamedTuple):
    """What its tangent sweep leaves."""

    x_dot: Tensor | None
    w_dot: Tensor | None


class Bilinear(Op[Factors, FactorsDot]):
    """y = B(x, w) + b with B linear in each argument: linear, convolution, product, embedding.

    The product rule gives the dual sweeps: y_dot = B(x_dot, w) + B(x, w_dot), and `product_backward` is itself
    linear in (dy), x and w, so its tangent is product_backward(dy_dot, x, w) + product_backward(dy, x_dot, w_dot).
    """

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        """B(x, w)."""
        raise NotImplementedError

    def product_backward(
        self, dy: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """(dx, dw): dx is linear in dy and w, dw in dy and x. Where one is not needed, its factor gives a shape."""
        raise NotImplementedError

    def product_plus(self, y: Tensor | None, x: Tensor, w: Tensor) -> Tensor:
        """y + B(x, w), where `None` is zero."""
        term = self.product(x, w)
        return term if y is None else y + term

    def product_backward_plus(
        self, d: tuple[Tensor | None, Tensor | None], dy: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """d + product_backward(dy, x, w)."""
        dx, dw = self.product_backward(dy, x, w, need_x, need_w)
        return total(d[0], dx), total(d[1], dw)

    def bias_like(self, b: Tensor, x: Tensor) -> Tensor:
        """b as it broadcasts to the outputs."""
        raise NotImplementedError

    def bias_backward(self, dy: Tensor) -> Tensor:
        """The transpose of `bias_like`: dy summed over what b was repeated along."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Factors]:
        x, w, *bias = inputs
        return self.product_plus(self.bias_like(bias[0], x) if bias else None, x, w), Factors(x, w)

    def backward(self, saved: Factors, dy: Tensor, needs: Needs) -> MaybeTensors:
        x, w = saved
        dx, dw = self.product_backward(dy, x, w, needs[0], needs[1])
        return (dx, dw, *(self.bias_backward(dy) if need else None for need in needs[2:]))

    def forward_dot(self, saved: Factors, inputs_dot: MaybeTensors) -> tuple[Tensor, FactorsDot]:
        x, w = saved
        x_dot, w_dot, *bias_dot = inputs_dot
        y_dot = None if not bias_dot or bias_dot[0] is None else self.bias_like(bias_dot[0], x)
        if w_dot is None and x_dot is None:  # a frozen weight under a trainable bias, on an input without tangent
            x_dot = torch.zeros_like(x)
        if w_dot is not None:
            y_dot = self.product_plus(y_dot, x, w_dot)
        if x_dot is not None:
            y_dot = self.product_plus(y_dot, x_dot, w)
        assert y_dot is not None, "an op without any tangent is not swept"
        return y_dot, FactorsDot(inputs_dot[0], w_dot)

    def backward_dot(
        self, saved: Factors, saved_dot: FactorsDot, dy: Tensor, dy_dot: Tensor, needs: Needs
    ) -> MaybeTensors:
        x, w = saved
        x_dot, w_dot = saved_dot
        dx_dot, dw_dot = self.product_backward(dy_dot, x, w, needs[0], needs[1])
        need_x, need_w = needs[0] and w_dot is not None, needs[1] and x_dot is not None
        if need_x or need_w:
            along_x, along_w = x if x_dot is None else x_dot, w if w_dot is None else w_dot
            dx_dot, dw_dot = self.product_backward_plus((dx_dot, dw_dot), dy, along_x, along_w, need_x, need_w)
        return (dx_dot, dw_dot, *(self.bias_backward(dy_dot) if need else None for need in needs[2:]))


def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where `None` is zero."""
    if a is None:
        return b
    return a if b is None else a + b


def shared(x: Tensor) -> bool:
    """Whether all tasks read the same values through stride 0, as θ does at the first inner step."""
    return x.shape[0] > 1 and x.stride(0) == 0
