"""What every meta-learner has, and what an algorithm may say of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.engine.adjoint import Adjoint, Displacement, Identity, Unrolled
from fastmeta.engine.batch import TaskBatch, Tree
from fastmeta.engine.boundary import outside_of_compile
from fastmeta.engine.checks import check_module
from fastmeta.engine.explain import explain
from fastmeta.engine.ladder import check_batch_of
from fastmeta.engine.meta_step import MetaGradient
from fastmeta.engine.notices import warn_user
from fastmeta.engine.objective import Data
from fastmeta.engine.options import Loss, Options
from fastmeta.engine.prior import Prior
from fastmeta.engine.session import Call, PlanCache, Session
from fastmeta.internals import hooked_call
from fastmeta.optim.base import InnerRule, MadeForRows, State
from fastmeta.optim.sgd import SGD

from .outputs import Learners, MetaOutput, accumulated, check_gradients_on

T = TypeVar("T")
_LOSSES = ("inner_loss", "outer_loss")


class _Option(Generic[T]):
    """One of a learner's options as an attribute: read from the frozen set, checked when it is set."""

    def __init__(self, option: str = "") -> None:
        self._option = option

    def __set_name__(self, owner: type, name: str) -> None:
        self._option = self._option or name

    def __get__(self, learner: MetaLearner | None, owner: type) -> T:
        # without a learner the class is looked at, for documentation
        return self if learner is None else getattr(learner._options, self._option)  # pyright: ignore[reportReturnType]

    def __set__(self, learner: MetaLearner, value: T) -> None:
        learner._change(self._option, value)


class MetaLearner(nn.Module):
    """Common part of all algorithms; `MAML`, `FOMAML` and `Reptile` are made alike.

    An algorithm of your own is a subclass that says how it differs: `adapts` (which parameters the inner loop moves),
    `start` (where it begins), `weights` (at which steps the query loss counts), `episodes` (what it adds to the data),
    `adjoint` and `prior`. Everything else is inherited. One that moves the biases alone:

        >>> class Biases(fastmeta.MAML):
        ...     def adapts(self, name):
        ...         return name.endswith("bias")

    Args:
        model: the network θ; its own parameters receive the gradients. Inputs may be a tensor, a tuple (positional
            arguments) or a dict (keyword arguments) of tensors; so may outputs.
        inner_loss: (outputs, targets) of one task → scalar, a mean over the task's samples.
        inner_optimizer: `fastmeta.SGD` or `fastmeta.Adam`, with a fixed, scheduled or learned step size, or a rule of
            your own on `fastmeta.optim.Rule`. What it learns is `learned`, an `nn.Module`.
        inner_steps: K ≥ 0.
        outer_loss: the query loss; None takes the inner loss.
        inner_batch_size: step k sees the k-th slice of so many support samples, cyclically. None: all of them.
        inner_clip_norm: largest L2 norm of a task's inner gradient, all fast weights together, as
            `torch.nn.utils.clip_grad_norm_` has it; differentiated through. None: no clipping.
        first_order: inner gradients count as constants in the meta-gradient, ∂φ_K/∂φ_0 as one: what FOMAML does to
            MAML, at a third of its cost. Learned rates keep their exact gradient given that.
        backend: "torch" (plain ops, any device), "triton" (kernels, or an error), "reference" (one task at a time by
            autograd), or "auto", which chooses and says why in `explain()`. On a GPU it holds kernels that take the
            program against float64 on two tasks of the first batch, times both ways, and keeps on disk what it found.
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
        proof: "first" holds a new plan against plain autograd in float64 on two of the first batch's tasks, or on some
            of their samples, before its first number is returned: half a second or less, and nothing on later calls.
            A plan that differs is not used: a warning says by how much, and tasks run one by one under plain autograd.
            "off" leaves that out.

    Every option can be read and set later under its name (`compile` as `compile_step`), and is checked then too.

    A module may read in which inner step it is, in a buffer `inner_step` [K] of floats: 1 at k in step k and in the
    query pass at φ_{k+1}, 0 elsewhere (`fastmeta.models.PerStepBatchNorm`). Outside of a learner it keeps its value.

    Raises:
        TypeError, ValueError: an option out of range; the message lists what is legal.
    """

    adjoint: Adjoint = Unrolled()
    """How what the query set says of φ_K reaches φ_0: `fastmeta.engine.adjoint`."""

    prior: Prior | None = None
    """What is added to the support loss, a function of φ and φ_0: `fastmeta.engine.prior`."""

    query_batch_size: int | None = None
    """At φ_k the query loss is that of the k-th slice of so many query samples, cyclically. None: of all of them."""

    learned: nn.Module | None
    """What the inner rule learns, such as rates, for a parameter group of its own; None where it learns nothing."""

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_loss: Loss = F.cross_entropy,
        inner_optimizer: InnerRule = SGD(lr=0.01),  # noqa: B008  frozen
        inner_steps: int = 1,
        outer_loss: Loss | None = None,
        inner_batch_size: int | None = None,
        inner_clip_norm: float | None = None,
        first_order: bool = False,
        backend: Literal["auto", "torch", "triton", "reference"] = "auto",
        compile: bool = False,
        cuda_graph: bool = False,
        memory: Literal["save", "recompute"] = "save",
        task_chunk: int | None = None,
        bn_statistics: Literal["batch", "support"] = "batch",
        precision: Literal["float32", "tf32", "bfloat16"] = "float32",
        proof: Literal["first", "off"] = "first",
    ) -> None:
        check_module(model)
        if first_order:
            self.adjoint = _first_order(type(self).__name__, self.adjoint)
        options = Options(
            inner_loss=inner_loss, inner_optimizer=inner_optimizer, inner_steps=inner_steps,
            outer_loss=inner_loss if outer_loss is None else outer_loss, inner_batch_size=inner_batch_size,
            inner_clip_norm=inner_clip_norm, backend=backend, compile=compile, cuda_graph=cuda_graph, memory=memory,
            task_chunk=task_chunk, bn_statistics=bn_statistics, precision=precision, proof=proof,
            adjoint=self.adjoint, prior=self.prior, query_batch_size=self.query_batch_size,
        )  # fmt: skip
        super().__init__()
        self._plans = PlanCache()
        self._options = options
        self.module = model
        for name in _LOSSES:
            self._show_loss(name, getattr(options, name))
        self._take_rule(options)

    # Options: one frozen set, whose members are read and set as attributes. ------------------------------------------

    @property
    def options(self) -> Options:
        """All options; a new set of them where one has changed."""
        options, size = self._options, self.query_batch_size
        same = options.adjoint is self.adjoint and options.prior is self.prior and options.query_batch_size == size
        if not same:
            options = replace(options, adjoint=self.adjoint, prior=self.prior, query_batch_size=size)
            self._options = options
        return options

    inner_loss: _Option[Loss] = _Option()
    inner_optimizer: _Option[InnerRule] = _Option()
    inner_steps: _Option[int] = _Option()
    outer_loss: _Option[Loss] = _Option()
    inner_batch_size: _Option[int | None] = _Option()
    inner_clip_norm: _Option[float | None] = _Option()
    backend: _Option[str] = _Option()
    compile_step: _Option[bool] = _Option("compile")
    cuda_graph: _Option[bool] = _Option()
    memory: _Option[str] = _Option()
    task_chunk: _Option[int | None] = _Option()
    bn_statistics: _Option[str] = _Option()
    precision: _Option[str] = _Option()
    proof: _Option[str] = _Option()

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(type(self), name, None), _Option):
            # nn.Module would register a loss that is a module, and leave the option as it is
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _change(self, option: str, value: Any) -> None:
        """Sets an option, checked."""
        self._options = options = replace(self._options, **{option: value})
        if option == "inner_optimizer":
            self._take_rule(options)
        if option in _LOSSES:
            self._show_loss(option, value)

    def _show_loss(self, name: str, loss: Loss) -> None:
        """A loss that is a module is a submodule, so that it moves and is saved with the learner."""
        self._modules.pop(name, None)
        if isinstance(loss, nn.Module):
            self._modules[name] = loss

    def _take_rule(self, options: Options) -> None:
        """What the inner rule learns becomes a submodule, its parameters made for this network."""
        learned = options.inner_optimizer.learned
        if isinstance(learned, MadeForRows):
            program = self._plans.program(self.network, options, adapts=self._moves)
            learned.build(program.layout, options.inner_steps)
        self.learned = learned

    @property
    def network(self) -> nn.Module:
        """What the engine runs: the module, or what an algorithm puts around it."""
        return self.module

    # What an algorithm may say of its own. ----------------------------------------------------------------------------

    def adapts(self, name: str) -> bool:
        """Whether the inner loop moves the parameter of this name; else all tasks share it, and it gets its gradient
        from the query loss and, exactly, from every inner step that reads it."""
        return True

    def start(self, theta: Tensor, support: Data) -> Tensor:
        """φ_0 out of θ, the fast weights as a row [P]: another row, or one for each task [T, P], by plain autograd."""
        return theta

    def weights(self, steps: int) -> Tensor | Sequence[float] | None:
        """Of the query losses at φ_0 … φ_K, K + 1 numbers; None: one for the last alone. Only which of them are zero is
        part of a plan, so that annealing them plans nothing anew."""
        return None

    def episodes(self, batch: TaskBatch) -> TaskBatch:
        """The meta-batch that is adapted to and scored on."""
        return batch

    def at_iteration(self, iteration: int) -> None:
        """Called by a training loop before the meta-step of this number, counted from 0; here an algorithm anneals what
        it anneals. `fastmeta train` calls it; a script of yours does where its algorithm's docstring says so."""

    def noted(self, *notes: Tensor, finite: Tensor) -> None:
        """Called after a meta-step with what its adjoint said of its own accuracy, [T] each."""

    # Calls. -----------------------------------------------------------------------------------------------------------

    if TYPE_CHECKING:

        def __call__(
            self, support_x: Tree, support_y: Tree = None, query_x: Tree = None, query_y: Tree = None
        ) -> MetaOutput:
            """As `forward`."""
            ...

    @outside_of_compile
    def forward(
        self, support_x: Tree, support_y: Tree = None, query_x: Tree = None, query_y: Tree = None
    ) -> MetaOutput:
        """One meta-step over all tasks: adapt on the support sets, evaluate on the query sets.

        Args:
            support_x, support_y: inputs and targets [T, N, ...]; targets may be None.
            query_x, query_y: inputs and targets [T, M, ...]. Reptile runs without them, on the support set.

        Inputs and targets that require grad get one, as parameters do.

        Raises:
            TypeError, ValueError: shapes, dtypes, devices or labels that do not fit; the message names the argument.
        """
        return self._meta_step(support_x, support_y, query_x, query_y, Session.differentiable_step)

    @outside_of_compile
    def accumulate(
        self, support_x: Tree, support_y: Tree = None, query_x: Tree = None, query_y: Tree = None
    ) -> MetaOutput:
        """One meta-step that adds its gradient to `.grad` of all that `loss.backward()` reaches: `out = learner(...);
        out.loss.backward()` with the same numbers, and in less of Python's time.

        Gradients are added without autograd where that would do nothing but add. Where it does more it is called as
        ever: hooks on parameters or on the learner, DistributedDataParallel, a start or rates that were computed, data
        that require grad, backend="reference", and a subclass with a `forward` of its own. Gradients are averaged over
        processes by the call of the DistributedDataParallel module itself, so call that one and `backward()` there.

        Args:
            support_x, support_y, query_x, query_y: as `forward`.

        Returns:
            The output, whose `loss` and `task_losses` have no graph.

        Raises:
            TypeError, ValueError: shapes, dtypes, devices or labels that do not fit; the message names the argument.
            RuntimeError: gradients are off.

        Example:
            >>> optimizer.zero_grad()
            >>> out = maml.accumulate(support_x, support_y, query_x, query_y)
            >>> optimizer.step()
        """
        check_gradients_on()
        if type(self).forward is not MetaLearner.forward or hooked_call(self):
            return accumulated(self(support_x, support_y, query_x, query_y))
        return self._meta_step(support_x, support_y, query_x, query_y, Session.accumulated_step)

    def _meta_step(
        self, support_x: Tree, support_y: Tree, query_x: Tree, query_y: Tree,
        run: Callable[[Session], tuple[Tensor, Tensor, MetaGradient]],
    ) -> MetaOutput:  # fmt: skip
        """A meta-step as `run` runs a session's."""
        if query_x is None and query_y is None and isinstance(self.adjoint, Displacement):
            query_x, query_y = support_x, support_y
        batch = TaskBatch(support_x, support_y, query_x, query_y)
        if query_x is None:
            check_batch_of(batch, self.network, self.options, query_required=True)  # raises
        session = self.session(batch)
        loss, losses, step = run(session)
        finite = step.tasks.finite
        self._warn(finite)
        if step.tasks.notes:
            self.noted(*step.tasks.notes, finite=finite)
        return MetaOutput(loss, losses, session.backend.output_tree(step.tasks.outputs), finite)

    @outside_of_compile
    def adapt(self, support_x: Tree, support_y: Tree = None, *, steps: int | None = None) -> Learners:
        """Adapts the network to every task's support set; the learners can be called, differentiably in θ.

        Args:
            support_x, support_y: inputs and targets [T, N, ...].
            steps: inner steps; None takes `inner_steps`.

        First-order MAML's and Reptile's learners pass gradients on to θ as they are: ∂φ_K/∂θ is the identity.
        """
        return self._adapted(support_x, support_y, steps, None)

    def _adapted(
        self, support_x: Tree, support_y: Tree, steps: int | None, going_on: tuple[Tensor, State, int] | None
    ) -> Learners:
        if steps is not None and (not isinstance(steps, int) or steps < 0):
            raise ValueError(f"steps must be an integer of at least 0 or None (inner_steps), got {steps!r}")
        steps = self.inner_steps if steps is None else steps
        session = self.session(TaskBatch(support_x, support_y), steps=steps, going_on=going_on)
        phi, state, finite = session.adapt()
        if going_on is not None:
            steps += going_on[2]
        self._warn(finite)
        return Learners(session, phi, state, finite, steps, self._adapted)

    def session(
        self, batch: TaskBatch, *, steps: int | None = None, going_on: tuple[Tensor, State, int] | None = None
    ) -> Session:
        """A meta-batch bound to what runs it: programs, plans, kernels. For tests and benchmarks of the parts.

        Args:
            batch: without a query set only `adapt` may be called on the session.
            steps: inner steps; None takes `inner_steps`.
            going_on: fast weights [T, P] and state to go on from, and how many steps they went.
        """
        options = self.options
        steps = options.inner_steps if steps is None else steps
        mine = type(self)
        if mine.episodes is not MetaLearner.episodes:
            batch = self.episodes(batch)
        weights = None if mine.weights is MetaLearner.weights or batch.query_x is None else self.weights(steps)
        start = None if mine.start is MetaLearner.start else self.start
        return self._plans.open(self.network, options, batch, Call(steps, self._moves, start, weights, going_on))

    def explain(self) -> str:
        """How the model runs and why: the backend, then op by op what has its own sweeps and what is opaque."""
        program = self._plans.program(self.network, self.options, adapts=self._moves)
        return explain(type(self).__name__, program, self.options, self._plans)

    def predictions(self, learners: Any, query_x: Tree) -> Tree:
        """What adapted networks say of query inputs [T, M, ...]: logits or values, of which scores are taken. Outputs
        of `learners`, but for algorithms that predict by something else, such as a mean over draws of the weights."""
        return learners(query_x)

    # ----------------------------------------------------------------------------------------------------------------

    @property
    def _moves(self) -> Callable[[str], bool] | None:
        return None if type(self).adapts is MetaLearner.adapts else self.adapts

    @staticmethod
    def _warn(finite: Tensor) -> None:
        """Names the tasks that diverged, where looking does not make a device wait."""
        if finite.device.type == "cpu" and not all(
            finite.tolist()
        ):  # finite.all() of 25 tasks takes three times as long
            tasks = (~finite).nonzero().flatten().tolist()
            warn_user(
                f"non-finite values in task(s) {tasks}: their support data holds NaN or infinity, or their inner loop "
                "diverged. They are left out of the loss and of the meta-gradient (see `finite`); lower the inner "
                "learning rate, or check the data",
                RuntimeWarning,
            )


def _first_order(algorithm: str, adjoint: Adjoint) -> Adjoint:
    """The first-order form of an adjoint that goes through the inner steps."""
    if not isinstance(adjoint, Unrolled | Identity):
        raise ValueError(
            f"first_order=True: {algorithm} has no first-order form, as its meta-gradient by {type(adjoint).__name__} "
            "does not go through the inner steps; leave it out"
        )
    return Identity()
