"""How to train your MAML: six additions to MAML, each of which can be left out."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from fastmeta.engine.adjoint import Identity
from fastmeta.engine.batch import TaskBatch, Tree
from fastmeta.engine.options import check_count
from fastmeta.inner_step import INNER_STEP, inner_step_at, reads_inner_step
from fastmeta.internals import pytree
from fastmeta.optim.rates import PerLayerPerStep
from fastmeta.optim.sgd import SGD

from .arguments import WithoutRule
from .maml import MAML
from .outputs import as_tuple

_CONVERT = "convert the model's with fastmeta.models.per_step_batch_norm(model, steps=inner_steps{}), or set {}=False"


class MAMLPlusPlus(MAML):
    """MAML++ (Antoniou, Edwards, Storkey 2019): MAML with up to six additions; without all of them, MAML to the bit.

    1. Multi-step loss: Σ_k v_k L_q(φ_{k+1}) in place of L_q(φ_K), v_k from 1/K each to the last step alone over
       `multi_step_epochs` epochs; in eval mode the last step alone.
    2. A learned rate for every parameter tensor and step: φ_{k+1}^l = φ_k^l − α_{k,l} ∇^l L_s(φ_k).
    3. First order for `first_order_epochs` epochs, then the exact meta-gradient.
    4. Running batch-norm statistics of every step, in eval mode: `update_statistics`.
    5. γ and β of every step, learned by the outer loop and not adapted.
    6. The outer rate falls along a cosine: `scheduler`.

    Costs MAML's K gradients and Hessian products a task, and while the multi-step loss lasts K query gradients in place
    of one. 4 and 5 need a model with such layers. A change of v_k plans and compiles nothing anew; the end of 1 and the
    end of 3 do, once each. The schedules are those of the authors' code.

    Args:
        model: the network θ; for 4 and 5 that of `fastmeta.models.per_step_batch_norm`.
        lr: the step size of the inner loop, where learned rates start.
        multi_step_epochs: E of the multi-step loss; 0 leaves it out.
        per_step_rates: learn rates, `learner.learned`; False: `lr` is fixed.
        first_order_epochs: epochs that are first order; 0: none, as in the authors' released settings.
        per_step_statistics: the model's layers have running statistics for every step.
        per_step_affine: the model's layers have γ and β for every step; they are shared by all tasks.
        epoch_length: meta-steps an epoch, of `at_iteration`.

    All other arguments are described at `fastmeta.MetaLearner`. A training loop calls `at_iteration(i)` before each
    meta-step; `fastmeta train` does. The epoch is saved in `state_dict()`.

    Raises:
        ValueError: the model has none of the layers that `per_step_statistics` or `per_step_affine` is about; or
            `first_order_epochs` with `first_order=True`.

    Example:
        >>> model = per_step_batch_norm(conv4(ways=5), steps=5)
        >>> learner = fastmeta.MAMLPlusPlus(model, inner_steps=5, per_step_affine=True)
        >>> optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
        >>> scheduler = learner.scheduler(optimizer, iterations=50_000)
        >>> for i in range(50_000):
        ...     learner.at_iteration(i)
        ...     optimizer.zero_grad()
        ...     learner(*batch()).loss.backward()
        ...     optimizer.step()
        ...     scheduler.step()
    """

    def __init__(
        self, model: nn.Module, *, lr: float = 0.1, multi_step_epochs: int = 10, per_step_rates: bool = True,
        first_order_epochs: int = 0, per_step_statistics: bool = False, per_step_affine: bool = False,
        epoch_length: int = 100, **options: Unpack[WithoutRule],
    ) -> None:  # fmt: skip
        check_count("multi_step_epochs", multi_step_epochs, least=0)
        check_count("first_order_epochs", first_order_epochs, least=0)
        check_count("epoch_length", epoch_length, least=1)
        if first_order_epochs and options.get("first_order"):
            raise ValueError(
                "first_order_epochs says when first order ends, and with first_order=True it never does; leave one out"
            )
        self._of_steps = _parameters_of_steps(model) if per_step_affine else frozenset()  # for adapts(), soon
        if per_step_affine and not self._of_steps:
            raise ValueError(
                "per_step_affine=True needs layers with weights for every step, and the model has none: "
                + _CONVERT.format("", "per_step_affine")
            )
        if per_step_statistics and not _tracking(model):
            raise ValueError(
                "per_step_statistics=True needs layers with running statistics for every step, and the model has none: "
                + _CONVERT.format(', statistics="running"', "per_step_statistics")
            )
        rate = PerLayerPerStep(lr) if per_step_rates else lr
        super().__init__(model, inner_optimizer=SGD(lr=rate), **options)  # pyright: ignore[reportArgumentType]
        self.multi_step_epochs, self.first_order_epochs = multi_step_epochs, first_order_epochs
        self.per_step_statistics, self.per_step_affine = per_step_statistics, per_step_affine
        self.epoch_length, self._has_statistics = epoch_length, False
        self._orders = Identity(), self.adjoint
        self.epoch = 0

    # What is annealed. ------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of training, from 0, by which the multi-step loss and the order of the derivative go."""
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        check_count("epoch", value, least=0)
        self._epoch = value
        self.adjoint = self._orders[0] if value < self.first_order_epochs else self._orders[1]

    def at_iteration(self, iteration: int) -> None:
        """Sets the epoch, by `epoch_length`."""
        self.epoch = iteration // self.epoch_length

    def get_extra_state(self) -> Tensor:
        """The epoch, for `state_dict`."""
        return torch.tensor(self.epoch)

    def set_extra_state(self, state: Tensor) -> None:
        """The epoch, of `load_state_dict`."""
        self.epoch = int(state)

    def weights(self, steps: int) -> list[float] | None:
        """0, v_0 … v_{K−1} in training mode while the multi-step loss lasts."""
        if not self.training or self.epoch >= self.multi_step_epochs or not steps:
            return None
        return [0.0, *multi_step_weights(steps, self.epoch, self.multi_step_epochs)]

    def scheduler(self, optimizer: Optimizer, iterations: int, *, least: float = 1e-5) -> CosineAnnealingLR:
        """From the optimizer's rate (1e-3 in the paper's settings) to `least` along a cosine; `step()` it once an
        iteration.

        Args:
            optimizer: the outer one.
            iterations: meta-steps of the whole training.
            least: the rate at its end.
        """
        check_count("iterations", iterations, least=1)
        return CosineAnnealingLR(optimizer, T_max=iterations, eta_min=least)

    # Batch norm of every step. ----------------------------------------------------------------------------------------

    def adapts(self, name: str) -> bool:
        """All but γ and β of every step, where `per_step_affine` says that these are shared."""
        return name not in self._of_steps

    @torch.no_grad()
    def update_statistics(
        self, support_x: Tree, support_y: Tree = None, query_x: Tree = None, *, steps: int | None = None
    ) -> None:
        """Moves the running statistics of every step towards those of a meta-batch.

        Step k sees the support set at φ_k and the query set at φ_{k+1}, task by task, as a forward in training mode
        does. Call it now and then in training, or for some batches before `eval()`. Costs the forwards of a meta-step,
        one by one.

        Args:
            support_x, support_y, query_x: as `forward`; without a query set the support set alone.
            steps: K; None takes `inner_steps`.

        Raises:
            RuntimeError: the model has no layers with running statistics for every step, or is in eval mode.
        """
        if not _tracking(self.module):
            raise RuntimeError(
                "update_statistics needs layers with running statistics for every step, and the model has none: "
                + _CONVERT.format(', statistics="running"', "per_step_statistics")
            )
        if not self.module.training:
            raise RuntimeError(
                "update_statistics takes the statistics of batches, by which the model normalises in training mode, "
                "and it is in eval mode; call train() first"
            )
        steps = self.inner_steps if steps is None else steps
        learners = self.adapt(support_x, support_y, steps=0)
        for k in range(steps):
            self._track(learners.parameters(), support_x, k)
            learners = learners.adapt_further(support_x, support_y, steps=1)
            if query_x is not None:
                self._track(learners.parameters(), query_x, k)

    def _track(self, phi: dict[str, Tensor], x: Tree, step: int) -> None:
        """One forward of every task at its fast weights, on which the layers of statistics look."""
        layers = _tracking(self.module)
        at: dict[str, Tensor] = {}
        for name, b in self.module.named_buffers():
            if reads_inner_step(name, b):
                at[name] = inner_step_at(b, step)
            elif self.module.get_submodule(name.rpartition(".")[0]) not in layers:
                at[name] = b.clone()  # a forward may write it

        def look(layer: Any, args: tuple[Any, ...]) -> None:
            layer.track(args[0], step)

        handles = [layer.register_forward_pre_hook(look) for layer in layers]
        try:
            for t in range(len(next(iter(phi.values())))):
                one = pytree.tree_map_only(Tensor, lambda leaf, t=t: leaf[t], x)
                args, kwargs = ((), one) if isinstance(one, dict) else (as_tuple(one), {})
                functional_call(self.module, {name: p[t] for name, p in phi.items()} | at, args, kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def episodes(self, batch: TaskBatch) -> TaskBatch:
        """As they are; in eval mode they need statistics of every step."""
        if self.per_step_statistics and not self.module.training and not self._has_statistics:
            for layer in _tracking(self.module):
                if not bool((layer.batches_tracked > 0).any()) and not bool((layer.running_mean != 0).any()):
                    raise RuntimeError(
                        "the model normalises by the running statistics of every step in eval mode, and there are none "
                        "yet; call update_statistics(support_x, support_y, query_x) on some batches in training mode"
                    )
            self._has_statistics = True  # looking at them makes a device wait
        return batch


def multi_step_weights(steps: int, epoch: int, epochs: int) -> list[float]:
    """v_0 … v_{K−1} of the query losses at φ_1 … φ_K in an epoch, as the authors' code has them: 1/K each at epoch 0;
    until epoch `epochs` all but the last fall to 0.03/K."""
    least, fall = 0.03 / steps, epoch / (steps * epochs)
    early = max(1.0 / steps - fall, least)
    return [early] * (steps - 1) + [min(1.0 / steps + fall * (steps - 1), 1.0 - (steps - 1) * least)]


def _parameters_of_steps(model: nn.Module) -> frozenset[str]:
    """Names of parameters [K, ...] of modules that read in which of K steps they are."""
    found: set[str] = set()
    for path, module in model.named_modules():
        step = module._buffers.get(INNER_STEP)
        if step is not None and reads_inner_step(INNER_STEP, step):
            prefix = f"{path}." if path else ""
            own = module.named_parameters(recurse=False)
            found |= {prefix + name for name, p in own if p.dim() > 1 and p.shape[0] == len(step)}
    return frozenset(found)


def _tracking(model: nn.Module) -> list[Any]:
    """Layers with running statistics for every step."""
    return [m for m in model.modules() if "batches_tracked" in m._buffers and hasattr(m, "track")]
