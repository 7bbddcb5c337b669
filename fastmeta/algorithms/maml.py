"""Model-agnostic meta-learning, exact and first-order."""

from __future__ import annotations

from fastmeta.engine.adjoint import Identity, Unrolled

from .base import MetaLearner


class MAML(MetaLearner):
    """Model-agnostic meta-learning with the exact meta-gradient, through every inner step (Finn et al. 2017, eq. 1).

    θ ← θ − β ∇_θ mean_t L_q(φ_K),  φ_{k+1} = φ_k − α ∇L_s(φ_k),  φ_0 = θ, with second derivatives. Costs K gradients
    and K Hessian-vector products a task beside the query pass, and memory for φ_1 … φ_K.

    Args:
        model: the network θ; its own parameters receive the gradients.
        inner_loss, outer_loss: (outputs, targets) of one task → scalar; the outer one is the inner one by default.
        inner_optimizer: `fastmeta.SGD` or `fastmeta.Adam`.
        inner_steps: K ≥ 0.

    All other arguments are described at `fastmeta.MetaLearner`: inner_batch_size, inner_clip_norm, backend, compile,
    cuda_graph, memory, task_chunk, bn_statistics, precision.

    Example:
        >>> maml = fastmeta.MAML(model, inner_optimizer=fastmeta.SGD(lr=0.4), inner_steps=5)
        >>> out = maml(support_x, support_y, query_x, query_y)  # [T, N, ...] [T, N] [T, M, ...] [T, M]
        >>> out.loss.backward()  # the meta-gradient, in model.parameters()
    """

    adjoint = Unrolled()


class FOMAML(MetaLearner):
    """First-order MAML: the query gradient at φ_K stands for the meta-gradient (Finn et al. 2017, section 5.2).

    θ ← θ − β mean_t ∇L_q(φ_K). Costs K gradients a task beside the query pass; memory does not grow with K. Arguments
    as `fastmeta.MAML`. A learned inner loss gets no gradient here: it reaches φ_K through inner gradients alone, which
    are constants.

    Example:
        >>> fomaml = fastmeta.FOMAML(model, inner_optimizer=fastmeta.SGD(lr=0.4), inner_steps=5)
        >>> fomaml(support_x, support_y, query_x, query_y).loss.backward()
    """

    adjoint = Identity()
