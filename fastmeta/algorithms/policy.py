"""MAML for policies: episodes drawn at every inner step, the meta-gradient with the part through the sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, Unpack, runtime_checkable

import torch
from torch import Tensor, nn

from fastmeta.engine.batch import Tree
from fastmeta.engine.meta_step import finite_count, mean_finite
from fastmeta.internals import pytree
from fastmeta.optim.base import InnerRule
from fastmeta.trajectories import Trajectories

from .maml import MAML
from .outputs import Learners
from .surrogates import Baseline, Kind, LinearBaseline, Surrogate, advantages

_KINDS = ("dice", "lvc", "plain")
_NOT_TAKEN = {
    "inner_loss": "it is the surrogate",
    "outer_loss": "it is the surrogate",
    "inner_batch_size": "every inner step draws episodes of its own",
}


@runtime_checkable
class Policy(Protocol):
    """What a policy has beside being an `nn.Module` [N, *observation] → outputs [N, ...].

    Both functions take outputs with any dimensions in front, and read no parameter of the module, as that would be
    θ and no task's fast weight: a learned standard deviation is one of the outputs. All tasks run at once where
    `log_probability` is made of tensor operations; `torch.distributions` look at values unless validate_args=False.
    `fastmeta.models.GaussianPolicy` and `CategoricalPolicy` are two.
    """

    def draw(self, outputs: Any, generator: torch.Generator | None, /) -> Tensor:
        """Actions [..., *action] drawn from the distribution that outputs [..., ] stand for."""
        ...

    def log_probability(self, outputs: Any, actions: Tensor, /) -> Tensor:
        """Of each action, [...]."""
        ...


class Actor:
    """The policies of all tasks as they are at one inner step: what `sample(act)` is handed. Takes no gradient."""

    def __init__(self, policy: Policy, run: Callable[[Tensor], Tree], generator: torch.Generator | None) -> None:
        self._policy, self._run, self._generator = policy, run, generator

    def outputs(self, observations: Tensor) -> Tree:
        """The policies' outputs [T, E, ...], such as means, for observations [T, E, *observation]."""
        if not isinstance(observations, Tensor) or observations.dim() < 2:
            given = list(observations.shape) if isinstance(observations, Tensor) else type(observations).__name__
            raise ValueError(f"observations must be a tensor [tasks, episodes, *observation], got {given}")
        with torch.no_grad():
            return self._run(observations)

    def __call__(self, observations: Tensor) -> Tensor:
        """Actions [T, E, *action], drawn for observations [T, E, *observation]."""
        with torch.no_grad():
            return self._policy.draw(self.outputs(observations), self._generator)


Sample = Callable[[Actor], Trajectories]
"""Lets an actor play E episodes in each of T tasks: the same tasks whenever it is called in one meta-step."""


class PolicyOutput(NamedTuple):
    """What a meta-step of `PolicyMAML` gives.

    Attributes:
        loss: the surrogate at φ_K, mean over the finite tasks; `loss.backward()` gives the meta-gradient. Its value
            says little: watch `returns`.
        task_losses: [T], differentiable.
        returns: mean return (without discount) of each task before and after every inner step, [K + 1, T].
        finite: [T] bool; False: a task whose rewards, inner loop or loss holds a NaN or infinity, left out of `loss`.
        trajectories: what was drawn at φ_0 … φ_K.
    """

    loss: Tensor
    task_losses: Tensor
    returns: Tensor
    finite: Tensor
    trajectories: tuple[Trajectories, ...]


class AdaptedPolicies(NamedTuple):
    """What `PolicyMAML.adapt_policies` gives: all tasks' policies, and their returns [steps + 1, T] on the way."""

    learners: Learners
    returns: Tensor


class _Arguments(TypedDict, total=False):
    """Options of every learner that `PolicyMAML` takes; `fastmeta.MetaLearner` describes them."""

    inner_optimizer: InnerRule
    inner_steps: int
    inner_clip_norm: float | None
    first_order: bool
    backend: Literal["auto", "torch", "triton", "reference"]
    compile: bool
    memory: Literal["save", "recompute"]
    task_chunk: int | None
    precision: Literal["float32", "tf32", "bfloat16"]
    proof: Literal["first", "off"]


class PolicyMAML(MAML):
    """MAML for policies (Finn et al. 2017, algorithm 3), all tasks at once, with the whole derivative of the return.

    For J_t(φ) = E_{τ ~ π_φ}[Σ_h γ^h r_h] / H, the discounted return of task t for each step of the horizon H, the
    outer optimiser climbs

        mean_t J_t(φ_K),   φ_{k+1} = φ_k + α ∇J_t(φ_k),   φ_0 = θ,

    where each gradient is estimated from episodes drawn at that very φ_k. The meta-gradient of one step is
    (I + α ∇²J(θ)) ∇J(φ_1), and the Hessian has a part through the sampling:

        ∇²J = E[Σ_h A_h (∇² log π_h + ∇ log π_h ∇ log π_hᵀ)] + E[Σ_h ∇ log π_h (∇Q_h)ᵀ + its transpose].

    (A_h is the advantage γ^h (return to go − baseline)). `surrogate` is the loss whose Hessian stands for it. Gradients
    are equal for all three; the Hessian's expectation is

    - "dice": all of it (Foerster et al. 2018), Σ_h □(log π_0 + … + log π_h) (A_h − A_{h+1}), □(x) = exp(x − ⊥x). Its
      variance grows with the horizon, as that of likelihood ratios does.
    - "lvc": the first expectation, Σ_h □(log π_h) A_h (low-variance curvature, Rothfuss et al. 2019: ProMP). Without
      bias to first order; of the Hessian it leaves out how later returns change with φ, the second expectation, which
      is zero for a horizon of one step, and is less noisy.
    - "plain": E[Σ_h A_h ∇² log π_h] alone, from Σ_h log π_h A_h. Its gradient is the policy gradient, which makes it
      tempting, but it is a function of fixed episodes: differentiated once more it holds them fixed while φ moves, and
      so loses even ∇ log π ∇ log πᵀ. The adjoint of this surrogate is **not** the meta-gradient, at any number of
      episodes; it is here to be compared with.

    With N episodes a task the meta-gradient has noise of O(1/√N) and a bias of O(α²/N): φ_1 is itself an estimate, and
    ∇J no linear function of it.

    Costs a meta-step of `MAML`, and K + 1 times the episodes.

    Args:
        policy: an `nn.Module` with `draw` and `log_probability`, see `fastmeta.algorithms.policy.Policy`.
        surrogate: "dice", "lvc" or "plain", see above.
        discount: γ, in (0, 1].
        baseline: what is expected of each step, subtracted from returns: (trajectories, returns to go [T, E, H]) →
            [T, E, H]; None: nothing. It may look at observations and times alone; one that is fitted on the same
            episodes, as `LinearBaseline` is, has a bias that vanishes with their number.
        normalise_advantages: shift and scale each task's to mean 0 and variance 1, as the paper's code does: rates then
            do not depend on the size of rewards, and gradients are those of a rescaled return.
        generator: what actions are drawn with, on the policy's device; None: PyTorch's own.

    All other arguments are described at `fastmeta.MetaLearner`: inner_optimizer, inner_steps, inner_clip_norm,
    first_order, backend, compile, memory, task_chunk, precision, proof. As losses are means over E · H steps, rates
    that were published for such means carry over.

    Raises:
        TypeError, ValueError: an option out of range or one that does not go with policies; a policy without `draw` or
            `log_probability`.

    Example:
        >>> learner = fastmeta.PolicyMAML(policy, inner_optimizer=fastmeta.SGD(lr=0.1))
        >>> tasks = Navigation().sample(20, generator)  # of fastmeta.tasks; or any callable (act) -> Trajectories
        >>> out = learner.step(tasks)
        >>> out.loss.backward()  # the meta-gradient, in policy.parameters()
    """

    def __init__(
        self,
        policy: nn.Module,
        *,
        surrogate: Kind = "dice",
        discount: float = 0.99,
        baseline: Baseline | None = LinearBaseline(),  # noqa: B008  frozen
        normalise_advantages: bool = False,
        generator: torch.Generator | None = None,
        **options: Unpack[_Arguments],
    ) -> None:
        for name, why in _NOT_TAKEN.items():
            if name in options:
                raise ValueError(f"{name} is not an option of PolicyMAML, as {why}; leave it out")
        if isinstance(policy, nn.Module) and not isinstance(policy, Policy):
            raise TypeError(
                "policy must have methods draw(outputs, generator) and log_probability(outputs, actions), which "
                f"{type(policy).__name__} has not; wrap it, say in fastmeta.models.GaussianPolicy"
            )
        if surrogate not in _KINDS:
            raise ValueError(f"surrogate must be one of {', '.join(map(repr, _KINDS))}, got {surrogate!r}")
        if not isinstance(discount, int | float) or not 0 < discount <= 1:
            raise ValueError(f"discount must be a number in (0, 1], got {discount!r}")
        if baseline is not None and not callable(baseline):
            raise TypeError(f"baseline must be a callable (trajectories, returns) or None, got {baseline!r}")
        loss = Surrogate(surrogate, policy.log_probability)  # pyright: ignore[reportArgumentType]
        super().__init__(policy, inner_loss=loss, outer_loss=loss, **options)
        self._surrogate = loss
        self.discount, self.baseline, self.normalise_advantages = discount, baseline, normalise_advantages
        self.generator = generator

    @property
    def surrogate(self) -> Kind:
        """Which one it is."""
        return self._surrogate.kind

    def data(self, trajectories: Trajectories) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Episodes as inputs and targets of the surrogate: (observations, (actions, credits, mask)).

        Observations and actions are [T, E · H, ...], credits and mask [T, E, H].

        Raises:
            TypeError, ValueError: fields that do not fit each other.
        """
        drawn = Trajectories(*trajectories)
        drawn.check()
        dtype = next(p for p in self.module.parameters() if p.requires_grad).dtype
        drawn = Trajectories(*(x.detach().to(dtype) if x.is_floating_point() else x for x in drawn))
        found = advantages(
            drawn, discount=self.discount, baseline=self.baseline, normalise=self.normalise_advantages
        )  # fmt: skip
        targets = drawn.actions.flatten(1, 2), self._surrogate.credits(found), drawn.mask.to(dtype)
        return drawn.observations.flatten(1, 2), targets

    def step(self, sample: Sample) -> PolicyOutput:
        """One meta-step: K times episodes and an inner step on them, then episodes and the loss at φ_K.

        Args:
            sample: plays episodes of T tasks, see `Sample`; called K + 1 times. With inner_steps=0 this is the policy
                gradient of all tasks without adaptation.

        Raises:
            TypeError, ValueError: trajectories that do not fit each other, the policy, or those before them.
        """
        learners, drawn = self._play(sample, self.inner_steps)
        x, targets = self.data(drawn[-1])
        losses = self._surrogate(learners(x), targets)
        finite = learners.finite & losses.detach().isfinite()
        loss = mean_finite(losses, finite, finite_count(finite))
        return PolicyOutput(loss, losses, _returns(drawn), finite, tuple(drawn))

    @torch.no_grad()
    def adapt_policies(self, sample: Sample, *, steps: int | None = None) -> AdaptedPolicies:
        """Adapts to tasks without a meta-gradient, and plays once more at the end.

        Args:
            sample: as for `step`; called steps + 1 times.
            steps: None takes `inner_steps`.
        """
        steps = self.inner_steps if steps is None else steps
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"steps must be an integer of at least 0 or None (inner_steps), got {steps!r}")
        learners, drawn = self._play(sample, steps)
        return AdaptedPolicies(learners, _returns(drawn))

    def _play(self, sample: Sample, steps: int) -> tuple[Learners, list[Trajectories]]:
        """The inner loop on episodes of its own, and those of φ_0 … φ_K."""
        learners: Learners | None = None
        drawn: list[Trajectories] = []
        for k in range(steps + 1):
            run = self._shared if learners is None else learners
            with torch.no_grad():
                trajectories = sample(Actor(self.module, run, self.generator))  # pyright: ignore[reportArgumentType]
            drawn.append(trajectories)
            if k < steps or learners is None:
                x, targets = self.data(trajectories)
                self._check_policy(x[0], targets[0][0])
                more = min(1, steps)
                if learners is None:
                    learners = self.adapt(x, targets, steps=more)
                else:
                    learners = learners.adapt_further(x, targets, steps=more)
        assert learners is not None
        return learners, drawn

    def _check_policy(self, observations: Tensor, actions: Tensor) -> None:
        """Raises where log probabilities do not fit, or read θ beside the outputs of the one task that is looked at."""
        policy: Any = self.module
        with torch.no_grad():
            outputs = pytree.tree_map_only(Tensor, Tensor.detach, policy(observations))  # a view still has a graph
        with torch.enable_grad():
            log_p = policy.log_probability(outputs, actions)
            drawn = policy.draw(outputs, torch.Generator(observations.device))
        for name, found in (("log_probability", log_p), ("draw", drawn)):
            if found.requires_grad:
                raise ValueError(
                    f"policy.{name} reads a parameter of {type(policy).__name__}: it would be that of θ and not the "
                    "adapted one; return it from forward, as one of the outputs, and read it there"
                )
        if log_p.shape != observations.shape[:1]:
            raise ValueError(
                f"policy.log_probability must give one number for each of the {len(observations)} actions (shape "
                f"{list(actions.shape)}), got shape {list(log_p.shape)}; sum over the numbers of an action"
            )

    def _shared(self, observations: Tensor) -> Tree:
        """Outputs at θ, which all tasks share: one call of the policy."""
        tasks, episodes = observations.shape[:2]

        def apart(y: Tensor) -> Tensor:
            if y.shape[:1] != (tasks * episodes,):
                raise ValueError(
                    f"policy must give outputs [N, ...] for observations [N, *observation], got {list(y.shape)} for "
                    f"N = {tasks * episodes}; expand what does not depend on the observation"
                )
            return y.unflatten(0, (tasks, episodes))

        return pytree.tree_map_only(Tensor, apart, self.module(observations.flatten(0, 1)))


def _returns(drawn: list[Trajectories]) -> Tensor:
    return torch.stack([Trajectories(*each).totals() for each in drawn])
