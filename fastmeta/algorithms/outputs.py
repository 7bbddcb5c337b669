"""What learners give: the results of a meta-step, and the adapted networks of all tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fastmeta.engine.batch import Tree
from fastmeta.engine.checks import check_query


@dataclass(frozen=True)
class MetaOutput:
    """What a meta-step gives.

    Attributes:
        loss: mean of `task_losses` over the tasks that stayed finite; `loss.backward()` gives the meta-gradient.
        task_losses: [T] query losses after adaptation, differentiable.
        outputs: the module's query outputs [T, M, ...], for metrics; not differentiable (use `adapt` for that).
        finite: [T] bool. False: the task's support data, inner loop or loss holds a NaN or infinity; the task is
            left out of `loss` and of the meta-gradient. On a CPU a RuntimeWarning names it.
    """

    loss: Tensor
    task_losses: Tensor
    outputs: Tree
    finite: Tensor


class Learners:
    """All tasks' adapted networks. Call them on query inputs [T, M, ...]; differentiable in the meta-parameters."""

    def __init__(
        self, run: Callable[[Tree], Tree], params: dict[str, Tensor], finite: Tensor, module: nn.Module
    ) -> None:
        self._run = run
        self._params = params
        self._module = module
        self.finite = finite  # [T] bool, as MetaOutput.finite

    def parameters(self) -> dict[str, Tensor]:
        """Fast weights φ_K: {name: [T, *shape]}, differentiable in the meta-parameters."""
        return dict(self._params)

    def __call__(self, query_x: Tree) -> Tree:
        """The module's outputs [T, M, ...] at each task's fast weights."""
        check_query(query_x, tasks=self.finite.shape[0], module=self._module)
        return self._run(query_x)
