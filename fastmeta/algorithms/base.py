"""MAML, first-order MAML and Reptile over all tasks of a meta-batch at once: thin modules over the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastmeta import reference
from fastmeta.engine.autograd import Adapt, Apply, MetaStep, no_autocast
from fastmeta.engine.backends.cuda_graph import REFERENCE
from fastmeta.engine.batch import TaskBatch, Tree, finite_tasks
from fastmeta.engine.checks import check_batch, check_options, warn_running_statistics
from fastmeta.engine.explain import explain
from fastmeta.engine.meta_step import mean_finite
from fastmeta.engine.notices import warn_user
from fastmeta.engine.session import Session, Sessions
from fastmeta.optim import InnerOptimizer
from fastmeta.optim.sgd import SGD
from fastmeta.program.losses import Loss

from .outputs import Learners, MetaOutput


class MetaLearner(nn.Module):
    """Common part of MAML, FOMAML and Reptile.

    Args:
        model: the network θ; its own parameters receive the gradients. Inputs may be a tensor, a tuple (positional
            arguments) or a dict (keyword arguments) of tensors; so may outputs.
        inner_loss: (outputs, targets) of one task → scalar, a mean over the task's samples.
        inner_optimizer: `fastmeta.SGD` or `fastmeta.Adam`.
        inner_steps: K ≥ 0.
        outer_loss: the query loss; None takes the inner loss.
        inner_batch_size: step k sees the k-th slice of so many support samples, cyclically. None: all of them.
        backend: "torch" (plain ops, any device), "triton" (kernels, or an error), "reference" (one task at a time by
            autograd), or "auto", which chooses and says why in `explain()`.
        compile: send the whole meta-step, second order included, through `torch.compile(fullgraph=True)`.
        cuda_graph: on a GPU, record the whole meta-step as one CUDA graph at the second call with data of a shape, and
            replay it from then on; a graph keeps a meta-step's memory. Python in the loss and the module runs at the
            recording only, and other tensors that they hold must stay in their place. Only the latest meta-step's
            `task_losses` can be differentiated; `loss` always can. Where nothing can be recorded, the step runs as
            ever, and a warning and `explain()` say why.
        memory: "save" keeps each inner step's activations for the adjoint, "recompute" only the fast weights.
        task_chunk: tasks that run at once; None chooses. Results do not depend on it.
        bn_statistics: batch norm normalises query samples by the statistics of the query batch ("batch", as the MAML
            paper does: transductive) or of the task's support batch ("support").
        precision: of matrix products. "float32" is IEEE single (and float64 in a float64 module); "tf32" lets a GPU's
            tensor cores round operands to 10 bits; "bfloat16" to 7. Sums and fast weights stay in float32.

    Raises:
        TypeError, ValueError: an option out of range; the message lists what is legal.
    """

    order: ClassVar[Literal["exact", "first", "reptile"]]

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_loss: Loss = F.cross_entropy,
        inner_optimizer: InnerOptimizer = SGD(lr=0.01),  # noqa: B008  frozen
        inner_steps: int = 1,
        outer_loss: Loss | None = None,
        inner_batch_size: int | None = None,
        backend: Literal["auto", "torch", "triton", "reference"] = "auto",
        compile: bool = False,
        cuda_graph: bool = False,
        memory: Literal["save", "recompute"] = "save",
        task_chunk: int | None = None,
        bn_statistics: Literal["batch", "support"] = "batch",
        precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    ) -> None:
        check_options(
            module=model, inner_loss=inner_loss, outer_loss=outer_loss, inner_optimizer=inner_optimizer,
            inner_steps=inner_steps, inner_batch_size=inner_batch_size, backend=backend, compile=compile,
            cuda_graph=cuda_graph, memory=memory, task_chunk=task_chunk, bn_statistics=bn_statistics,
            precision=precision,
        )  # fmt: skip
        super().__init__()
        self.module = model
        self.inner_loss = inner_loss
        self.inner_optimizer = inner_optimizer
        self.inner_steps = inner_steps
        self.outer_loss = inner_loss if outer_loss is None else outer_loss
        self.inner_batch_size = inner_batch_size
        self.backend = backend
        self.compile_step = compile
        self.cuda_graph = cuda_graph
        self.memory = memory
        self.task_chunk = task_chunk
        self.bn_statistics = bn_statistics
        self.precision = precision
        self._sessions = Sessions()

    def forward(
        self, support_x: Tree, support_y: Tree = None, query_x: Tree = None, query_y: Tree = None
    ) -> MetaOutput:
        """One meta-step over all tasks: adapt on the support sets, evaluate on the query sets.

        Args:
            support_x, support_y: inputs and targets [T, N, ...]; targets may be None.
            query_x, query_y: inputs and targets [T, M, ...]. Reptile runs without them, on the support set.

        Raises:
            TypeError, ValueError: shapes, dtypes, devices or labels that do not fit; the message names the argument.
        """
        if query_x is None and query_y is None and self.order == "reptile":
            query_x, query_y = support_x, support_y
        batch = TaskBatch(support_x, support_y, query_x, query_y)
        if query_x is None:
            self._check(batch)  # raises
        if self.backend == "reference":
            self._check(batch)
            if self.cuda_graph:
                self._sessions.tell_no_graph(REFERENCE)
            return self._reference_step(batch)
        session = self._session(batch)
        differentiate = torch.is_grad_enabled()
        step = session.meta_step(keep=differentiate)
        loss, (losses, outputs, finite, _) = step.loss, step.tasks
        if differentiate:
            loss, losses = MetaStep.apply(step, session.layout, *session.params)  # pyright: ignore[reportGeneralTypeIssues]
        self._warn(finite)
        return MetaOutput(loss, losses, session.output_tree(outputs), finite)

    def adapt(self, support_x: Tree, support_y: Tree = None, *, steps: int | None = None) -> Learners:
        """Adapts the network to every task's support set; the learners can be called, differentiably in θ.

        Args:
            support_x, support_y: inputs and targets [T, N, ...].
            steps: inner steps; None takes `inner_steps`.

        First-order MAML's and Reptile's learners pass gradients on to θ as they are: ∂φ_K/∂θ is the identity.
        """
        if steps is not None and (not isinstance(steps, int) or steps < 0):
            raise ValueError(f"steps must be an integer of at least 0 or None (inner_steps), got {steps!r}")
        steps = self.inner_steps if steps is None else steps
        batch = TaskBatch(support_x, support_y)
        if self.backend == "reference":
            self._check(batch, query_required=False)
            learners = self._reference_learners(batch, steps)
            self._warn(learners.finite)
            return learners
        session = self._session(batch, steps=steps)
        differentiable = torch.is_grad_enabled()
        finite: list[Tensor] = []

        def run() -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            phi, adjoint = session.adapt(keep=differentiable)
            finite.append(kept := finite_tasks(batch.support_x, phi))
            # a task that diverged has no gradient to give: its 0 · NaN must not reach the others'
            return phi, lambda lam: torch.where(kept.unsqueeze(1), adjoint(lam), 0.0)

        phi = Adapt.apply(run, session.layout, *session.params) if differentiable else run()[0]
        assert isinstance(phi, Tensor)
        self._warn(finite[0])
        return Learners(lambda x: self._run(session, phi, x), session.layout.named(phi), finite[0], self.module)

    def _run(self, session: Session, phi: Tensor, query_x: Tree) -> Tree:
        session = session.on(query_x)
        if torch.is_grad_enabled() and phi.requires_grad:
            outputs = Apply.apply(lambda: session.apply(phi.detach()), phi)
        else:
            outputs, _ = session.apply(phi)
        return session.output_tree(outputs)

    def explain(self) -> str:
        """How the model runs and why: the backend, then op by op what has its own sweeps and what is opaque."""
        return explain(self)

    # ----------------------------------------------------------------------------------------------------------------

    def _check(self, batch: TaskBatch, *, query_required: bool = True) -> None:
        """Raises what is wrong with a batch: `check_batch` with this learner's options."""
        if batch.query_x is not None and batch.query_x is batch.support_x:  # lent, see `forward`: first in its own name
            self._check(TaskBatch(batch.support_x, batch.support_y), query_required=False)
        check_batch(
            batch, module=self.module, inner_loss=self.inner_loss, outer_loss=self.outer_loss,
            inner_batch_size=self.inner_batch_size, query_required=query_required,
        )  # fmt: skip

    def _session(self, batch: TaskBatch, *, steps: int | None = None) -> Session:
        return self._sessions.open(self, batch, self.inner_steps if steps is None else steps)

    @staticmethod
    def _warn(finite: Tensor) -> None:
        """Names the tasks that diverged, where looking does not make a device wait."""
        if finite.device.type == "cpu" and not all(finite.tolist()):  # finite.all() of 25 tasks takes 2.3 µs for 0.7
            tasks = (~finite).nonzero().flatten().tolist()
            warn_user(
                f"non-finite values in task(s) {tasks}: their support data holds NaN or infinity, or their inner loop "
                "diverged. They are left out of the loss and of the meta-gradient (see `finite`); lower the inner "
                "learning rate, or check the data",
                RuntimeWarning,
            )

    # The reference: the same results by autograd, one task at a time. ---------------------------------------------

    def _reference_learners(self, batch: TaskBatch, steps: int) -> Learners:
        params = self._reference_adapt(batch, steps)
        finite = finite_tasks(batch.support_x, params)
        if torch.is_grad_enabled() and bool(finite.any()) and not bool(finite.all()):
            # a task that diverged stays out of the graph: its 0 · NaN would reach the others' gradients
            kept = finite.nonzero().flatten()
            again = self._reference_adapt(_take(batch, kept), steps)
            params = {name: p.detach().index_copy(0, kept, again[name]) for name, p in params.items()}

        def run(query_x: Tree) -> Tree:
            with no_autocast(finite.device.type):
                return reference.apply(
                    self.module, params, query_x, support_x=batch.support_x, bn_statistics=self.bn_statistics
                )

        return Learners(run, params, finite, self.module)

    def _reference_adapt(self, batch: TaskBatch, steps: int) -> dict[str, Tensor]:
        warn_running_statistics(self.module)
        with no_autocast(_device(self.module).type):
            return reference.adapt(
                self.module, inner_loss=self.inner_loss, inner_optimizer=self.inner_optimizer, steps=steps,
                support_x=batch.support_x, support_y=batch.support_y, inner_batch_size=self.inner_batch_size,
                first_order=self.order != "exact",
            )  # fmt: skip

    def _reference_step(self, batch: TaskBatch) -> MetaOutput:
        learners = self._reference_learners(batch, self.inner_steps)
        outputs = learners(batch.query_x)
        with no_autocast(_device(self.module).type):
            losses = reference.task_losses(self.outer_loss, outputs, batch.query_y)
        if self.order == "reptile" and torch.is_grad_enabled():
            losses = losses.detach() + _pull(dict(self.module.named_parameters()), learners.parameters())
        outputs = pytree.tree_map_only(Tensor, Tensor.detach, outputs)
        finite = learners.finite & finite_tasks(losses)
        if torch.is_grad_enabled() and bool(finite.any()) and not bool(finite.all()):
            kept = finite.nonzero().flatten()
            losses = losses.detach().index_copy(0, kept, self._reference_step(_take(batch, kept)).task_losses)
        self._warn(finite)
        return MetaOutput(mean_finite(losses, finite), losses, outputs, finite)


def _take(batch: TaskBatch, tasks: Tensor) -> TaskBatch:
    trees = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    return TaskBatch(*pytree.tree_map_only(Tensor, lambda x: x[tasks], trees))


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _pull(theta: dict[str, nn.Parameter], phi: dict[str, Tensor]) -> Tensor:
    """Zero [T] whose gradient with respect to θ is θ − φ_K of each task."""
    terms = []
    for name, fast in phi.items():
        distance = (theta[name] - fast).detach()
        terms.append(((theta[name] - theta[name].detach()) * distance).flatten(1).sum(1))
    return torch.stack(terms).sum(0)
