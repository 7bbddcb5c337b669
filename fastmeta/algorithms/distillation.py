"""Distilled data: a support set that is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack, cast

from torch import Tensor, nn

from fastmeta.engine.batch import Tree
from fastmeta.engine.options import Options
from fastmeta.internals import pytree

from .arguments import Arguments
from .maml import MAML
from .outputs import Learners, MetaOutput, accumulated, check_gradients_on


class SupportSet(nn.Module):
    """A learned support set: `x`, a parameter, and `y`, a parameter where labels are learned, else a buffer.

    Args:
        x: floating point, [N, ...] for all tasks, or with `per_task` [T, N, ...].
        y: labels or targets, as many.
        learn_labels: y of floating point is learned too.
        per_task: every task has its own.
    """

    def __init__(self, x: Tensor, y: Tensor, *, learn_labels: bool = False, per_task: bool = False) -> None:
        super().__init__()
        lead = 2 if per_task else 1
        shape = "[T, N, ...]" if per_task else "[N, ...]"
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < lead:
            raise TypeError(f"support_x must be a tensor {shape} of floating point, got {_said(x)}")
        if not isinstance(y, Tensor) or y.shape[:lead] != x.shape[:lead]:
            raise ValueError(f"support_y must be a tensor {shape} with as many samples as support_x, got {_said(y)}")
        if learn_labels and not y.is_floating_point():
            raise ValueError(
                f"learn_labels=True needs support_y of floating point, such as one-hot rows [N, classes], got {y.dtype}"
            )
        self.per_task = per_task
        self.x = nn.Parameter(x.detach().clone())
        if learn_labels:
            self.y = nn.Parameter(y.detach().clone())
        else:
            self.register_buffer("y", y.detach().clone())

    def forward(self, tasks: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets [tasks, N, ...]."""
        x, y = self.x, cast(Tensor, self.y)
        if not self.per_task:
            return x.expand(tasks, *x.shape), y.expand(tasks, *y.shape)
        if len(x) != tasks:
            raise ValueError(
                f"query_x holds {tasks} tasks, and the learned support set is of {len(x)} tasks, per_task=True; pass "
                "the same tasks in the same order"
            )
        return x, y


class Distillation(MAML):
    """Dataset distillation (Wang et al. 2018): the support set is learned so that K inner steps on it do well.

    min over (x̃, ỹ) of mean_t L_q(φ_K),  φ_{k+1} = φ_k − α ∇L_s(φ_k; x̃, ỹ),  φ_0 = θ. The gradient of x̃ and ỹ goes
    through all K steps, exactly: the mixed derivatives come with each Hessian product, without further passes. θ gets
    its meta-gradient too; whether it is trained, is up to the optimiser. Costs what MAML costs.

    All tasks that share a set and θ come to the same φ_K: give all query samples as one task, unless tasks differ in
    their loss or batch statistics.

    Args:
        model: the network θ.
        support_x: where the inputs start, [N, ...], or with `per_task` [T, N, ...]; floating point.
        support_y: their labels or targets; fixed, or with `learn_labels` learned: targets of a regression, or rows of
            class probabilities, which are used as they are.
        learn_labels: learn support_y.
        per_task: a set for each of T tasks.

    All other arguments are described at `fastmeta.MetaLearner`. `learned` is the `SupportSet`, with `x` and `y`; where
    the inner rule learns too, an `nn.ModuleDict` of "support" and "rule".

    Raises:
        TypeError, ValueError: data that do not fit each other; `first_order=True`, which has no gradient of data.

    Example:
        >>> images, labels = torch.randn(10, 1, 28, 28), torch.arange(10)
        >>> learner = fastmeta.Distillation(model, support_x=images, support_y=labels, inner_steps=10)
        >>> optimizer = torch.optim.Adam(learner.learned.parameters(), lr=1e-2)
        >>> learner(real_x, real_y).loss.backward()  # [T, M, ...]
    """

    _support: SupportSet

    def __init__(
        self, model: nn.Module, *, support_x: Tensor, support_y: Tensor, learn_labels: bool = False,
        per_task: bool = False, **options: Unpack[Arguments],
    ) -> None:  # fmt: skip
        support = SupportSet(support_x, support_y, learn_labels=learn_labels, per_task=per_task)
        if options.get("first_order"):
            raise ValueError(
                "first_order=True: inner gradients as constants leave the support set without a gradient; leave it out"
            )
        # not as a submodule: it is one as `learned`, and a state holds it once
        object.__setattr__(self, "_support", support)
        super().__init__(model, **options)

    def _take_rule(self, options: Options) -> None:
        super()._take_rule(options)
        rule = self.learned
        self.learned = self._support if rule is None else nn.ModuleDict({"support": self._support, "rule": rule})

    if TYPE_CHECKING:

        def __call__(self, query_x: Tree, query_y: Tree = None) -> MetaOutput:  # pyright: ignore[reportIncompatibleMethodOverride]
            """As `forward`."""
            ...

    def forward(self, query_x: Tree, query_y: Tree = None) -> MetaOutput:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One meta-step: adapt on the learned set, evaluate on query sets [T, M, ...]."""
        x, y = self._support(_tasks(query_x))
        return super().forward(x, y, query_x, query_y)

    def accumulate(self, query_x: Tree, query_y: Tree = None) -> MetaOutput:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `MetaLearner.accumulate`, on query sets [T, M, ...] as `forward`."""
        check_gradients_on()
        return accumulated(self(query_x, query_y))

    def adapt(self, tasks: int = 1, *, steps: int | None = None) -> Learners:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The network adapted to the learned set, `tasks` times the same one unless every task has its own."""
        support = self._support
        return super().adapt(*support(len(support.x) if support.per_task else tasks), steps=steps)


def _tasks(query_x: Tree) -> int:
    leaves = [leaf for leaf in pytree.tree_leaves(query_x) if isinstance(leaf, Tensor) and leaf.dim()]
    if not leaves:
        raise TypeError("query_x must hold tensors [T, M, ...], got None; pass the query set")
    return leaves[0].shape[0]


def _said(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
