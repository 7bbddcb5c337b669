"""The learned optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn

from fastmeta.engine.batch import TaskBatch, Tree
from fastmeta.engine.boundary import outside_of_compile
from fastmeta.engine.checks import check_query
from fastmeta.engine.options import check_count
from fastmeta.engine.session import Call, Session
from fastmeta.optim.base import State
from fastmeta.optim.learned import LearnedUpdate

from .arguments import WithoutRule
from .base import MetaLearner
from .lstm import learned_order
from .outputs import MetaOutput


class Carry(NamedTuple):
    """Where an unroll ended, for the next one to go on from.

    Attributes:
        phi: fast weights as rows [T, P].
        state: the optimiser's, [T, P, hidden] each.
        steps: how many steps they went.
    """

    phi: Tensor
    state: State
    steps: int


class LearnedOptimizer(MetaLearner):
    """A learned optimiser (Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent").

    φ_{k+1} = φ_k + scale · linear(LSTM(pre(g_k))),  loss of a task = Σ_{k=0…K} w_k L(φ_k) on its support set

    Every coordinate has LSTM states of its own, and all share the weights, `learner.learned`; these are trained, and θ
    is only where the optimisation starts. pre(g) = (max(ln(|g| + ε) / p, −1), clip(e^p g, −1, 1)).

    As published, inner gradients g_k are constants, and the losses L(φ_k) are not: no Hessian products. Costs 2K + 1
    gradients a task, and for every step a sweep through the LSTM; memory for the states [T, P, hidden] of all K steps.
    Triton kernels do not take it.

    Args:
        model: the network θ.
        hidden: widths of the LSTM's layers.
        p: of the preprocessing, 5 as in the authors' code; None: gradients as they are.
        scale: of the update.
        eps: ε of the preprocessing; None: the machine epsilon of the parameters' dtype.
        loss_weights: w_0 … w_K; None: one each.
        second_order: differentiate through the inner gradients as well: the exact meta-gradient.
        options: as `fastmeta.MetaLearner`, but for the inner optimiser, and 20 inner steps. `first_order=True` is the
            default here. The outer loss is taken at every φ_k, of the support set, by default the inner one.

    A meta-step needs no query set; one that is given is not learned from, `outputs` are those on it.

    Raises:
        ValueError: an option out of range, or first_order with second_order.

    Example:
        >>> learner = fastmeta.LearnedOptimizer(model, inner_loss=loss, inner_steps=20)
        >>> outer = torch.optim.Adam(learner.learned.parameters(), lr=1e-3)
        >>> carry = None
        >>> for _ in range(5):  # 100 steps in truncated unrolls of 20
        ...     out, carry = learner.unroll(x, y, carry=carry)
        ...     outer.zero_grad()
        ...     out.loss.backward()
        ...     outer.step()
    """

    def __init__(
        self, model: nn.Module, *, hidden: Sequence[int] = (20, 20), p: float | None = 5.0, scale: float = 0.01,
        eps: float | None = None, loss_weights: Sequence[float] | None = None,
        second_order: bool = False, **options: Unpack[WithoutRule],
    ) -> None:  # fmt: skip
        self.adjoint = learned_order(options, second_order=second_order)
        rule = LearnedUpdate.new(hidden=hidden, p=p, scale=scale, eps=eps)
        steps = options.setdefault("inner_steps", 20)
        if loss_weights is not None and len(loss_weights) != steps + 1:
            raise ValueError(
                f"loss_weights must hold {steps + 1} numbers, for the losses at φ_0 … φ_{steps}, got "
                f"{len(loss_weights)}"
            )
        super().__init__(model, inner_optimizer=rule, **options)
        self.loss_weights = loss_weights

    def weights(self, steps: int) -> Sequence[float]:
        """Of the losses at φ_0 … φ_K."""
        return [1.0] * (steps + 1) if self.loss_weights is None else self.loss_weights

    @outside_of_compile
    def forward(
        self, support_x: Tree, support_y: Tree = None, query_x: Tree = None, query_y: Tree = None
    ) -> MetaOutput:
        """One unroll of `inner_steps` steps from θ on all tasks.

        Args:
            support_x, support_y: inputs and targets [T, N, ...]; targets may be None.
            query_x, query_y: inputs and targets [T, M, ...] for `outputs` alone, or None: those of the support set.
        """
        out, session, carry = self._unrolled(support_x, support_y, None, None)
        if query_x is None:
            return out
        check_query(query_x, tasks=out.finite.shape[0], module=self.module, bn_statistics=self.bn_statistics)
        with torch.no_grad():
            return out._replace(outputs=session.outputs(carry.phi, query_x))

    @outside_of_compile
    def unroll(
        self, support_x: Tree, support_y: Tree = None, *, carry: Carry | None = None, steps: int | None = None
    ) -> tuple[MetaOutput, Carry]:
        """A piece of a longer optimisation: its loss Σ w_k L(φ_k), and where the next piece goes on.

        Args:
            support_x, support_y: inputs and targets [T, N, ...] of the same tasks, in the same order, in every piece.
            carry: what the piece before gave; None starts at θ, with states of zero. Where its tensors require a
                gradient they get one.
            steps: of this piece; None takes `inner_steps`.

        Returns:
            The output, whose `loss` gives the gradient of this piece alone, and the carry, without a gradient.

        Raises:
            ValueError: a carry of other tasks or parameters, or another number of `loss_weights` than steps + 1.
        """
        if steps is not None:
            check_count("steps", steps, least=0)
        if carry is not None:
            check_query(support_x, tasks=carry.phi.shape[0], module=self.module, name="support_x")
        out, _, after = self._unrolled(support_x, support_y, carry, steps)
        return out, after

    def _unrolled(
        self, support_x: Tree, support_y: Tree, carry: Carry | None, steps: int | None
    ) -> tuple[MetaOutput, Session, Carry]:
        steps = self.inner_steps if steps is None else steps
        batch = TaskBatch(support_x, support_y, support_x, support_y)
        going_on = None if carry is None else (carry.phi, carry.state, carry.steps)
        call = Call(steps, self._moves, None, self.weights(steps), going_on, ends=True)
        session = self._plans.open(self.module, self.options, batch, call)
        loss, losses, step = session.differentiable_step()
        tasks = step.tasks
        self._warn(tasks.finite)
        phi, *state = (x.detach() for x in tasks.ends)
        out = MetaOutput(loss, losses, session.backend.output_tree(tasks.outputs), tasks.finite)
        return out, session, Carry(phi, tuple(state), steps + (0 if carry is None else carry.steps))
