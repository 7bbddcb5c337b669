"""What an inner rule is: one update of the fast weights of all tasks, and its vector-Jacobian product.

Rows are flat buffers [T, P]. What a rule learns (η: rates, the weights of a network) and its step sizes are handed in
as tensors, `meta`, so that a change of a number compiles and plans nothing; the rule itself is frozen and hashable.
Derivations: kernels/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""Of a rule, [T, ...] each: a velocity, moments, an LSTM's states."""

Meta = tuple[Tensor, ...]
"""η and step sizes."""

Named = dict[str, Tensor]


class Pulled(NamedTuple):
    """An adjoint pulled back through one step: λ_k = direct + factor · H v, H the Hessian at φ_k, and σ_k = state.

    The factor, a number or a tensor of one, stands apart because it then costs nothing: it goes into the sum. `meta`
    is each task's own ∂/∂η of this step, [T, *shape], where it was asked for. `loss` [T] is the cotangent of the
    support loss, of a rule that reads it: it adds loss · g to λ_k.
    """

    direct: Tensor
    v: Tensor
    factor: float | Tensor
    state: State
    meta: Meta = ()
    loss: Tensor | None = None


class Rows(Protocol):
    """Where each parameter lies in a row [P] of fast weights: what `fastmeta.program.layout.Layout` has."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def shapes(self) -> tuple[torch.Size, ...]: ...
    @property
    def offsets(self) -> tuple[int, ...]: ...
    @property
    def padding(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


@runtime_checkable
class MadeForRows(Protocol):
    """What an inner rule learns, where its parameters depend on the network: rates, matrices for every layer."""

    def build(self, rows: Rows, steps: int) -> None:
        """Makes the parameters, for the fast weights of `rows` and `steps` inner steps; a second call only checks."""
        ...


class KernelRule(NamedTuple):
    """A rule that the Triton kernels know: "sgd" (momentum, nesterov, weight decay) or "adam" (beta1, beta2, eps)."""

    name: str
    hyper: tuple[float, float, float]


@runtime_checkable
class InnerRule(Protocol):
    """What the inner loop asks of an update rule. Write your own on `Rule`, which leaves `init` and `step` to you.

    A rule that has `reads_loss = True` is handed the support loss of the step as well: `step` and `vjp` take a keyword
    `loss` [T].
    """

    reads_gradient: ClassVar[bool]
    """Whether `vjp` reads g_k where ∂/∂η is not wanted; kept for nothing it takes the cache."""

    meta_by_step: ClassVar[bool]
    """Whether the tensors of `meta` are [K, ...], of which a step is handed its row; [1, ...] serves all steps."""

    def init(self, phi: Tensor) -> State:
        """The state of new tasks, at φ_0 [T, P]."""
        ...

    def step(self, phi: Tensor, g: Tensor, state: State, k: int, meta: Meta) -> tuple[Tensor, State]:
        """φ_k, its gradient and the state → φ_{k+1} and the new state. Nothing is changed in place."""
        ...

    def vjp(
        self, phi: Tensor, g: Tensor | None, state: State, k: int, meta: Meta, lam: Tensor, sigma: State,
        *, wanted: bool = False,
    ) -> Pulled:  # fmt: skip
        """(λ_{k+1}, σ_{k+1}) → what λ_k and σ_k are made of, and, `wanted`, ∂/∂η."""
        ...

    def in_kernels(self) -> KernelRule | str:
        """What the Triton kernels are told, or why none takes the rule."""
        ...

    @property
    def learned(self) -> nn.Module | None:
        """The module that holds η, for the outer optimiser; None where nothing is learned."""
        ...

    @property
    def fixed(self) -> bool:
        """Whether `meta` gives the same tensors in every call."""
        ...

    def meta(self, rows: Rows, steps: int) -> Meta:
        """η and step sizes for `steps` steps on rows like these, differentiable in the parameters of `learned`."""
        ...

    def structure(self) -> InnerRule:
        """The rule without what `meta` carries: rules of equal structure share a plan and compiled code."""
        ...


class Rule:
    """A base for rules of your own: write `init` and `step` in torch operations, and their vjp is taken from them.

    A learned optimiser keeps its network in `learned` and hands the network's tensors to `step` by `meta`:

        class Learned(fastmeta.optim.Rule):
            def __init__(self, network):
                self.learned = network
            def init(self, phi):
                return ()
            def meta(self, rows, steps):
                return tuple(self.learned.parameters())
            def step(self, phi, g, state, k, meta):
                weight, bias = meta
                return phi - (g.unsqueeze(-1) * weight + bias).squeeze(-1), state

    `step` must treat every task by itself: row t of what it gives may depend on row t of what it takes alone. With
    `reads_loss = True` it takes the support loss of the step too, [T], as a keyword `loss`.
    """

    reads_gradient: ClassVar[bool] = True
    reads_loss: ClassVar[bool] = False
    meta_by_step: ClassVar[bool] = False
    learned: nn.Module | None = None
    fixed: bool = False

    def init(self, phi: Tensor) -> State:
        """The state of new tasks, at φ_0 [T, P]: none."""
        return ()

    def step(self, phi: Tensor, g: Tensor, state: State, k: int, meta: Meta) -> tuple[Tensor, State]:
        """φ_k, its gradient and the state → φ_{k+1} and the new state."""
        raise NotImplementedError(f"{type(self).__name__} needs a method step(phi, g, state, k, meta)")

    def vjp(
        self, phi: Tensor, g: Tensor | None, state: State, k: int, meta: Meta, lam: Tensor, sigma: State,
        *, wanted: bool = False, loss: Tensor | None = None,
    ) -> Pulled:  # fmt: skip
        """By `torch.func.vjp` of `step`; ∂/∂η one task at a time under vmap, as a task that diverged must stay out."""
        assert g is not None, "a rule by its step reads the gradient"
        given = {} if loss is None else {"loss": loss}

        def pull(phi: Tensor, g: Tensor, state: State, given: Named, lam: Tensor, sigma: State) -> tuple[Any, ...]:
            one = [x.unsqueeze(0) for x in (phi, g, *state)]
            args = (one[0], one[1], tuple(one[2:]), meta, {name: x.unsqueeze(0) for name, x in given.items()})

            def step(phi: Tensor, g: Tensor, state: State, meta: Meta, given: Named) -> tuple[Tensor, State]:
                return self.step(phi, g, state, k, meta, **given)

            back = torch.func.vjp(step, *args)[1]
            a_phi, a_g, a_state, a_meta, a_given = back((lam.unsqueeze(0), tuple(s.unsqueeze(0) for s in sigma)))
            return a_phi[0], a_g[0], tuple(s[0] for s in a_state), a_meta, {name: x[0] for name, x in a_given.items()}

        direct, v, a_state, a_meta, a_given = torch.func.vmap(pull)(phi, g, state, given, lam, sigma)
        return Pulled(direct, v, 1.0, tuple(a_state), tuple(a_meta) if wanted else (), a_given.get("loss"))

    def in_kernels(self) -> KernelRule | str:
        """Why none takes it."""
        return f"the kernels have SGD and Adam, the inner rule is {type(self).__name__}"

    def meta(self, rows: Rows, steps: int) -> Meta:
        """η: nothing."""
        return ()

    def structure(self) -> Self:
        """The rule itself."""
        return self


def reads_loss(rule: InnerRule) -> bool:
    """Whether `step` and `vjp` of the rule take the support loss of the step."""
    return bool(getattr(rule, "reads_loss", False))


def check_number(name: str, value: Any, *, below_one: bool = False) -> None:
    """Raises ValueError unless `value` is a finite number that is not negative, and, where asked for, below one."""
    legal = isinstance(value, int | float) and math.isfinite(value) and value >= 0 and (not below_one or value < 1)
    if not legal:
        bound = "in [0, 1)" if below_one else "finite and not negative"
        raise ValueError(f"{name} must be a number {bound}, got {value!r}")


def pieces(rows: Rows) -> Sequence[int]:
    """Width of every parameter in a row, with the padding behind it."""
    return [shape.numel() + pad for shape, pad in zip(rows.shapes, rows.padding, strict=True)]
