"""Inner loops that move one part of the network: its head alone (ANIL), or all but the head (BOIL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import nn

from fastmeta.engine.checks import check_module

from .arguments import Arguments
from .maml import MAML


class _WithHead(MAML):
    """A network of a body and a head, which are told apart by names."""

    def __init__(
        self, model: nn.Module, *, head: str | Sequence[str] | None = None, **options: Unpack[Arguments]
    ) -> None:
        check_module(model)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._head = _last_with_parameters(model, names) if head is None else _checked(head, names)
        if not any(map(self.adapts, names)):
            raise ValueError(
                f"head must leave parameters that the inner loop of {type(self).__name__} can move, and {head!r} holds "
                f"all that are trainable; the parameters are {names}"
            )
        super().__init__(model, **options)

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the head's submodules or parameters."""
        return self._head

    def in_head(self, name: str) -> bool:
        """Whether the parameter of this name is the head's."""
        return any(_within(name, prefix) for prefix in self._head)

    def extra_repr(self) -> str:
        """The head's names."""
        return f"head={', '.join(map(repr, self._head))}"

    def explain(self) -> str:
        """As every learner's, with the head's names."""
        first, *rest = super().explain().split("\n")
        return "\n".join([f"{first}, head {', '.join(map(repr, self._head))}", *rest])


class ANIL(_WithHead):
    """Almost no inner loop (Raghu et al. 2020): the inner loop moves the head w alone, tasks share the body ψ.

    w_{k+1} = w_k − α ∇_w L_s(w_k, ψ),  (w, ψ) ← (w, ψ) − β ∇ mean_t L_q(w_K, ψ). The meta-gradient is exact: the body's
    has the term that comes through the support features in every inner step, which is lost where features are detached.

    The body runs once on the support set and once on the query set, forward and back, and the K inner steps with their
    Hessian products go through the head alone. That is found in the network's own program: a value that depends on the
    head is computed in every step, wherever the head is. With `inner_batch_size` the body runs in every step, on the
    samples that the step sees. Fast weights and their trajectory are the head's alone.

    Args:
        model: the network; head and body both get a meta-gradient.
        head: the name of the head, or several: of a submodule (`"classifier"`) or of a parameter, as
            `model.named_parameters()` has them. None: the last submodule that holds trainable parameters of its own.

    All other arguments as `fastmeta.MAML`; `first_order=True` leaves the Hessian out, and with it what the body's
    gradient has of the support set.

    Raises:
        TypeError, ValueError: `head` names nothing trainable, or, where it is None, there is no body.

    Example:
        >>> anil = fastmeta.ANIL(model, head="classifier", inner_optimizer=fastmeta.SGD(lr=0.1), inner_steps=5)
        >>> anil(support_x, support_y, query_x, query_y).loss.backward()
    """

    def adapts(self, name: str) -> bool:
        """The head's parameters."""
        return self.in_head(name)


class BOIL(_WithHead):
    """Body only in the inner loop (Oh et al. 2021): the inner loop moves all but the head w, which tasks share.

    ψ_{k+1} = ψ_k − α ∇_ψ L_s(w, ψ_k),  (w, ψ) ← (w, ψ) − β ∇ mean_t L_q(w, ψ_K). The paper takes one inner step of rate
    0.5. The meta-gradient is exact, the head's with its term of every inner step. Costs what MAML does: nothing of the
    network stands still but the head.

    Args:
        model: the network; head and body both get a meta-gradient.
        head: as `fastmeta.ANIL` has it.

    All other arguments as `fastmeta.MAML`.

    Raises:
        TypeError, ValueError: `head` names nothing trainable, or all that is.

    Example:
        >>> boil = fastmeta.BOIL(model, inner_optimizer=fastmeta.SGD(lr=0.5), inner_steps=1)
        >>> boil(support_x, support_y, query_x, query_y).loss.backward()
    """

    def adapts(self, name: str) -> bool:
        """All others."""
        return not self.in_head(name)


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _checked(head: str | Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The names of a head that a user gave, each of which some trainable parameter has."""
    heads = (head,) if isinstance(head, str) else head
    if not isinstance(heads, Sequence) or not all(isinstance(prefix, str) for prefix in heads):
        raise TypeError(f"head must be a name, several, or None (the last layer with parameters), got {head!r}")
    for prefix in heads:
        if not any(_within(name, prefix) for name in names):
            raise ValueError(
                f"head must name a submodule with trainable parameters, or one of these, got {prefix!r}; the "
                f"parameters are {names}"
            )
    if not heads:
        raise ValueError(
            f"head must name at least one submodule or parameter, got {head!r}; the parameters are {names}"
        )
    return tuple(heads)


def _last_with_parameters(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The last submodule that holds some of the trainable parameters itself."""
    known, last = set(names), ""
    for name, module in model.named_modules():
        if any(f"{name}.{own}" in known for own, _ in module.named_parameters(recurse=False)):
            last = name.partition(".parametrizations.")[0]  # a weight with a parametrization is its layer's
    if not last or all(_within(name, last) for name in names):
        raise ValueError(
            f"head must be named: the last submodule with trainable parameters holds all of them, {names}, so that "
            "there is no body"
        )
    return (last,)
