"""Online adaptation: every chunk of data is predicted before it is learned from, as in test-time training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from fastmeta.engine.batch import TaskBatch, Tree
from fastmeta.engine.boundary import outside_of_compile
from fastmeta.engine.options import check_count
from fastmeta.engine.session import Session
from fastmeta.optim.base import State
from fastmeta.optim.rates import PerLayerPerStep

from .arguments import Arguments
from .maml import MAML
from .outputs import Learners, MetaOutput


class Online(MAML):
    """Test-time training: chunk k of a task's samples is scored at φ_k and then stepped on, with the exact
    meta-gradient (TTT-E2E, arXiv 2512.23675, in its form for a sequence in chunks).

    L = mean_k L(φ_k; chunk k),  φ_{k+1} = φ_k − α ∇L(φ_k; chunk k),  φ_0 = θ. Of N samples in chunks of `chunk` there
    are N/chunk, of which all but the last are stepped on. Costs a gradient and a Hessian product for every chunk beside
    its query gradient.

    Args:
        model: the network θ.
        chunk: samples a chunk, in the order of the support set.
        moves: names of parameters, or of submodules, that the inner loop moves; all tasks share the rest, which gets
            its meta-gradient all the same. None: all are moved.

    All other arguments are described at `fastmeta.MetaLearner`, but for `inner_steps` and `inner_batch_size`, which the
    chunks decide, and `outer_loss`, which is the inner one. A call takes the support set alone:

    Example:
        >>> learner = fastmeta.Online(model, chunk=16, moves=["blocks.3"], inner_optimizer=fastmeta.SGD(lr=0.1))
        >>> out = learner(x, y)  # [T, N, ...]; out.outputs are those of every chunk at its φ_k, [T, N, ...]
        >>> out.loss.backward()
        >>> learners = learner.adapt(x, y)  # after all chunks

    Raises:
        ValueError: an option that the chunks decide, or a name in `moves` that fits no parameter.
    """

    def __init__(
        self, model: nn.Module, *, chunk: int, moves: Sequence[str] | None = None, **options: Unpack[Arguments]
    ) -> None:
        check_count("chunk", chunk, least=1)
        for name in ("inner_steps", "inner_batch_size", "outer_loss"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{name} is no option of Online: chunks of `chunk` samples are what a step takes and what is "
                    "scored, as many as the support set has, by the inner loss; leave it out"
                )
        rule = options.get("inner_optimizer")
        if isinstance(getattr(rule, "lr", None), PerLayerPerStep):
            raise ValueError(
                "inner_optimizer: PerLayerPerStep has rates for a number of steps that is known beforehand, and Online "
                "takes as many as a support set has chunks; use PerParameter"
            )
        if options.get("bn_statistics") == "support":
            raise ValueError(
                'bn_statistics="support" has no meaning here, as the chunks are the query set; use "batch"'
            )
        self.chunk, self.moves = chunk, None if moves is None else tuple(moves)
        self.query_batch_size = chunk
        for name in self.moves or ():
            if not any(_is_under(parameter, name) for parameter, _ in model.named_parameters()):
                raise ValueError(f"moves: no parameter of the model is named {name!r} or stands under it")
        super().__init__(model, inner_batch_size=chunk, **options)  # pyright: ignore[reportCallIssue]

    def adapts(self, name: str) -> bool:
        """What `moves` names."""
        return self.moves is None or any(_is_under(name, prefix) for prefix in self.moves)

    def weights(self, steps: int) -> list[float]:
        """The same at every φ_k."""
        return [1.0 / (steps + 1)] * (steps + 1)

    def _chunks(self, samples: int) -> int:
        if samples % self.chunk:
            raise ValueError(
                f"support_x must hold whole chunks of {self.chunk} samples, got {samples}; pass "
                f"{samples - samples % self.chunk or self.chunk} samples, or make the learner with another chunk"
            )
        return samples // self.chunk

    @outside_of_compile
    def forward(
        self, support_x: Tree, support_y: Tree = None, query_x: Tree = None, query_y: Tree = None
    ) -> MetaOutput:
        """One meta-step over all tasks.

        Args:
            support_x, support_y: inputs and targets [T, N, ...], N a multiple of `chunk`.
            query_x, query_y: there are none here.

        Raises:
            ValueError: a query set came, or N is no multiple of `chunk`.
            TypeError, ValueError: shapes, dtypes, devices or labels that do not fit; the message names the argument.
        """
        if query_x is not None or query_y is not None:
            raise ValueError(
                "query_x and query_y must be left out: Online scores each chunk of the support set before the step on "
                "it. For a query set after all chunks call adapt(support_x, support_y)(query_x)"
            )
        return super().forward(support_x, support_y, support_x, support_y)

    def session(
        self, batch: TaskBatch, *, steps: int | None = None, going_on: tuple[Tensor, State, int] | None = None
    ) -> Session:
        """As `MetaLearner.session`; the steps are those of the chunks: all of them, but in a meta-step for the last."""
        if steps is None:
            steps = self._chunks(batch.support_samples) - (batch.query_x is not None)
        return super().session(batch, steps=steps, going_on=going_on)

    def _adapted(
        self, support_x: Tree, support_y: Tree, steps: int | None, going_on: tuple[Tensor, State, int] | None
    ) -> Learners:
        if steps is None:
            steps = self._chunks(TaskBatch(support_x).support_samples)
        return super()._adapted(support_x, support_y, steps, going_on)


def _is_under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.removesuffix(".") + ".")
