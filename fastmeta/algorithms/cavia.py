"""Context adaptation, and latent codes of implicit networks: a small tensor is each task's own, all else is shared."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from fastmeta.engine.checks import check_module
from fastmeta.engine.objective import Data

from .arguments import Arguments
from .maml import MAML


class CAVIA(MAML):
    """Fast context adaptation (Zintgraf et al. 2019): the inner loop moves a context alone, from zero in every task.

    c_0 = 0,  c_{k+1} = c_k − α ∇_c L_s(θ, c_k);  θ ← θ − β ∇_θ mean_t L_q(θ, c_K), with the mixed derivatives
    ∂²L_s/∂θ∂c of every step. The context is a parameter of the model, whatever it is used for: put behind the input
    (`fastmeta.models.ContextMLP`), or as the source of modulations (`fastmeta.models.FilmConv4`). With
    `fastmeta.models.ModulatedSiren` it is the latent code of a picture: functa (Dupont et al. 2022), COIN++.

    Its value in the model is never read, and it has no gradient of its own: `.grad` stays None. Costs K gradients and K
    Hessian products a task of which the tangents are the context's; no step makes gradients of shared parameters but
    the adjoint. Fast weights take as much memory as the context.

    Args:
        model: the network, the context one of its parameters.
        context: its name, or the last part of that; exactly one parameter must have it.
        inner_optimizer: of the context; `fastmeta.SGD(lr=fastmeta.PerParameter(0.05))` learns a rate for each of its
            numbers, as functa does.

    All other arguments are described at `fastmeta.MetaLearner`. `first_order=True` leaves the mixed derivatives out.

    Raises:
        ValueError: no parameter has that name, several have, or it does not require grad.

    Example:
        >>> model = fastmeta.models.ContextMLP(inputs=1, context=5)
        >>> cavia = fastmeta.CAVIA(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=1.0))
        >>> cavia(support_x, support_y, query_x, query_y).loss.backward()
        >>> cavia.adapt(support_x, support_y).parameters()["context"]  # [T, 5]
    """

    def __init__(self, model: nn.Module, *, context: str = "context", **options: Unpack[Arguments]) -> None:
        check_module(model)
        self.context = _name_of(model, context)
        super().__init__(model, **options)

    def adapts(self, name: str) -> bool:
        """The context."""
        return name == self.context

    def start(self, theta: Tensor, support: Data) -> Tensor:
        """Zero."""
        return theta.new_zeros(theta.shape)


def _name_of(model: nn.Module, context: str) -> str:
    """The full name of the one parameter that `context` names."""
    if not isinstance(context, str):
        raise TypeError(f"context must be the name of a parameter of the model, got {context!r}")
    params = dict(model.named_parameters())
    found = [context] if context in params else [name for name in params if name.rpartition(".")[2] == context]
    if len(found) != 1:
        others = f"several: {found}; give the full name" if found else f"none; its parameters are {list(params)}"
        raise ValueError(f"context={context!r} must name one parameter of {type(model).__name__}, got {others}")
    if not params[found[0]].requires_grad:
        raise ValueError(
            f"context={context!r}: the inner loop moves {found[0]!r}, which is frozen; call requires_grad_(True) on it"
        )
    return found[0]
