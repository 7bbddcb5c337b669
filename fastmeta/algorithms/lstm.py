"""The LSTM meta-learner."""

from __future__ import annotations

from typing import Unpack

from torch import nn

from fastmeta.engine.adjoint import Unrolled
from fastmeta.optim.lstm import FedBack, LSTMRule

from .arguments import WithoutRule
from .base import MetaLearner


def learned_order(options: WithoutRule, *, second_order: bool) -> Unrolled:
    """How the meta-gradient of a learned update goes; takes `first_order` out of the options, which it is without
    `second_order`.

    Raises:
        ValueError: both are asked for.
    """
    if options.pop("first_order", False) and second_order:
        raise ValueError("first_order=True and second_order=True exclude each other; leave one of them out")
    return Unrolled(hessian=second_order)


class LSTMMetaLearner(MetaLearner):
    """The LSTM meta-learner (Ravi & Larochelle 2017, "Optimization as a model for few-shot learning").

    φ_{k+1} = f_k ⊙ φ_k − i_k ⊙ g_k, with gates f_k, i_k of every coordinate from an LSTM over its gradient and the
    loss, (ln|x| / p, sign x) of each where |x| ≥ e^−p, else (−1, e^p x). The coordinates share the LSTM's weights, and
    θ, the start, is the learned initial state of a cell whose update this is. The query loss at φ_K trains both.

    As published, gradients and losses of the inner loop are constants: no Hessian products. Costs K gradients a task,
    and for every inner step a sweep through the LSTM; memory for the states [T, P, hidden] of all K steps, which
    `memory="recompute"` leaves as they are. Triton kernels do not take it.

    Args:
        model: the network θ.
        hidden: width of the LSTM.
        gates: what of the gates of the step before is fed back: their values before the sigmoid, as the authors' code
            has it ("preactivation"), or behind it, as the paper writes it ("activation").
        p: of the preprocessing.
        second_order: differentiate through gradients and losses as well: the exact meta-gradient.
        options: as `fastmeta.MetaLearner`, but for the inner optimiser. `first_order=True` is the default here.

    The network of the gates is `learner.learned`, for a parameter group of its own.

    Raises:
        ValueError: an option out of range, or first_order with second_order.

    Example:
        >>> learner = fastmeta.LSTMMetaLearner(model, inner_steps=8, inner_batch_size=25)
        >>> learner(support_x, support_y, query_x, query_y).loss.backward()  # in learner.parameters()
    """

    def __init__(
        self, model: nn.Module, *, hidden: int = 20, gates: FedBack = "preactivation", p: float = 10.0,
        second_order: bool = False, **options: Unpack[WithoutRule],
    ) -> None:  # fmt: skip
        self.adjoint = learned_order(options, second_order=second_order)
        super().__init__(model, inner_optimizer=LSTMRule.new(hidden=hidden, gates=gates, p=p), **options)
