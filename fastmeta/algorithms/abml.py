"""Amortised Bayesian meta-learning: fast weights are Gaussian, the meta-parameters are their prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.engine.batch import TaskBatch, Tree
from fastmeta.engine.boundary import outside_of_compile
from fastmeta.engine.meta_step import finite_count, mean_finite
from fastmeta.engine.options import check_count
from fastmeta.engine.prior import GaussianKL, gaussian_kl
from fastmeta.engine.session import Session
from fastmeta.internals import pytree
from fastmeta.optim.base import State, check_number

from .arguments import Arguments
from .maml import MAML
from .outputs import Learners, MetaOutput

_LOSSES = ("inner_loss", "outer_loss")
_NOT_HERE = {
    "inner_batch_size": "random numbers come in beside the support samples, which are not cut into batches",
    "cuda_graph": "a meta-step here is an adaptation and a loss in PyTorch, which no graph holds",
    "bn_statistics": "random numbers come in beside the samples, so that the sets cannot be put one behind another",
}


class ABML(MAML):
    """Amortised Bayesian meta-learning (Ravi and Beatson 2019): q_t = N(μ, σ²) of every task, N(θ) its prior.

    φ = (μ, log σ), φ_0 = θ, and K steps of the inner rule on the support set's evidence bound, by S draws a step:

    φ_{k+1} = φ_k − α ∇[mean_s L_s(μ + σ ε_s) + kl_weight · KL(q ‖ N(θ))],

    θ ← θ − β ∇ mean_t [mean_s L(μ_K + σ_K ε_s) + kl_weight · KL(q_K ‖ N(θ))] − log p(θ) · prior_weight, the whole of it
    differentiated, KL's dependence on θ too. p(θ) = N(μ_θ; 0, 1) · Gamma(σ_θ⁻²; a, b). Costs S times MAML's gradients
    and Hessian products, on rows of twice the length; one query pass of S draws. A plan has S networks, and making it
    takes that much longer too.

    The noise of a task is a function of `seed`, of how many calls there were and of the task's number in the batch:
    neither `task_chunk` nor the backend changes it. `state_dict()` holds the number of calls.

    Args:
        model: a `fastmeta.models.Gaussian` of the network.
        kl_weight: of both KL terms. The losses are means over samples, so 1/N belongs in it. The term's curvature in μ
            is kl_weight / σ²: inner steps of a rate beyond 2 σ² / kl_weight swing away (σ² is 1e-3 at log σ = −3.5).
        prior_weight: of −log p(θ).
        gamma: a and b of the hyper-prior of precisions.
        samples, query_samples: S in the inner loop, and in the outer loss and predictions.
        outer_data: the outer loss is that of the query set, or of both sets together, as one batch.
        classify: outputs are logits, and predictions the mean of their softmax; False: predictions are means of the
            outputs; None: whether the inner loss is cross-entropy says so.
        seed: of the noise; ranks of one run take different ones.

    All other arguments are described at `fastmeta.MetaLearner`. `MetaOutput.outputs` are predictions: log-probabilities
    of the mean over draws, or means.

    Raises:
        TypeError: the model is no Gaussian one.
        ValueError: an option out of range, or `inner_batch_size`, `cuda_graph`, or bn_statistics="support".

    Example:
        >>> learner = fastmeta.ABML(Gaussian(conv4(ways=5)), inner_steps=5, inner_optimizer=fastmeta.SGD(lr=0.01))
        >>> learner(support_x, support_y, query_x, query_y).loss.backward()
        >>> learners = learner.adapt(support_x, support_y)
        >>> probabilities = learner.predict(learners, query_x)  # [T, M, ways]
    """

    def __init__(
        self, model: nn.Module, *, kl_weight: float = 0.01, prior_weight: float = 1e-4,
        gamma: tuple[float, float] = (1.0, 0.01), samples: int = 5, query_samples: int = 10,
        outer_data: Literal["query", "support+query"] = "query", classify: bool | None = None, seed: int = 0,
        **options: Unpack[Arguments],
    ) -> None:  # fmt: skip
        if not all(hasattr(model, name) for name in ("mean", "log_std", "noise_size", "inner_step")):
            raise TypeError(
                f"model must be a network with Gaussian weights, got {type(model).__name__}; pass "
                "fastmeta.models.Gaussian(model)"
            )
        for name, why in _NOT_HERE.items():
            if options.get(name) not in (None, False, "batch"):
                raise ValueError(f"{name}={options.get(name)!r} does not go with ABML: {why}; leave it out")
        for name, value in (("kl_weight", kl_weight), ("prior_weight", prior_weight), *zip("ab", gamma, strict=True)):
            check_number(name, value)
        check_count("samples", samples, least=1)
        check_count("query_samples", query_samples, least=1)
        check_count("seed", seed, least=0)
        if outer_data not in ("query", "support+query"):
            raise ValueError(f'outer_data must be "query" or "support+query", got {outer_data!r}')
        inner = options.get("inner_loss", F.cross_entropy)
        outer = options.get("outer_loss") or inner
        self.classify = (
            inner is F.cross_entropy or isinstance(inner, nn.CrossEntropyLoss) if classify is None else classify
        )
        self.kl_weight, self.prior_weight, self.gamma = kl_weight, prior_weight, gamma
        self.samples, self.query_samples, self.outer_data, self.seed = samples, query_samples, outer_data, seed
        self.calls = 0
        self.prior = GaussianKL(kl_weight)
        options["inner_loss"], options["outer_loss"] = _OverDraws(inner), _OverDraws(outer)
        super().__init__(model, **options)

    def _change(self, option: str, value: Any) -> None:
        super()._change(option, _OverDraws(value) if option in _LOSSES and not isinstance(value, _OverDraws) else value)

    # Noise. -----------------------------------------------------------------------------------------------------------

    def draw(self, tasks: int, steps: int, samples: int) -> Tensor:
        """Standard normal numbers [T, steps, samples, D] of the next call, each task's own."""
        like: Tensor = self.module.inner_step  # pyright: ignore[reportAssignmentType]
        size: int = self.module.noise_size  # pyright: ignore[reportAssignmentType]
        noise = torch.empty(tasks, steps, samples, size, dtype=like.dtype)
        generator = torch.Generator()
        for t in range(tasks):
            (state,) = np.random.SeedSequence([self.seed, self.calls, t]).generate_state(1)
            generator.manual_seed(int(state))
            noise[t].normal_(generator=generator)
        self.calls += 1
        return noise.to(like.device)

    def get_extra_state(self) -> Tensor:
        """How many calls have drawn noise, for `state_dict`."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        """The same, of `load_state_dict`."""
        self.calls = int(state)

    def episodes(self, batch: TaskBatch) -> TaskBatch:
        """With the noise of every inner step beside the support inputs."""
        noise = self.draw(batch.tasks, len(self.module.inner_step), self.samples)  # pyright: ignore[reportArgumentType]
        return TaskBatch(_beside(batch.support_x, noise), batch.support_y, batch.query_x, batch.query_y)

    def session(
        self, batch: TaskBatch, *, steps: int | None = None, going_on: tuple[Tensor, State, int] | None = None
    ) -> Session:
        """As `MetaLearner.session`, with a place in the noise for every step."""
        _check_pairs(self.module)
        last = (self.inner_steps if steps is None else steps) + (0 if going_on is None else going_on[2])
        places: Tensor = self.module.inner_step  # pyright: ignore[reportAssignmentType]
        if len(places) < max(last, self.inner_steps):
            self.module.inner_step = places.new_zeros(max(last, self.inner_steps))
        return super().session(batch, steps=steps, going_on=going_on)

    # Calls. -----------------------------------------------------------------------------------------------------------

    @outside_of_compile
    def forward(
        self, support_x: Tree, support_y: Tree = None, query_x: Tree = None, query_y: Tree = None
    ) -> MetaOutput:
        """One meta-step over all tasks, as `MetaLearner.forward`; `task_losses` are whole, KL and hyper-prior included.

        Raises:
            TypeError, ValueError: shapes, dtypes, devices or labels that do not fit; the message names the argument.
        """
        if query_x is None:
            raise TypeError("query_x must hold tensors [T, M, ...], got None; pass the query set")
        learners = self.adapt(support_x, support_y)
        x, y, seen = query_x, query_y, 0
        if self.outer_data == "support+query":
            x, y = (pytree.tree_map(_joined, a, b) for a, b in ((support_x, query_x), (support_y, query_y)))
            seen = TaskBatch(support_x).support_samples
        outputs = self._drawn(learners, x, self.query_samples)
        losses = [self.outer_loss(_task(outputs, t), _task(y, t)) for t in range(len(learners.finite))]
        losses = torch.stack(losses) + self.kl_weight * self._divergence(learners) + self._hyper_prior()
        finite = learners.finite & torch.isfinite(losses.detach())
        loss = mean_finite(losses, finite, finite_count(finite))
        with torch.no_grad():
            prediction = pytree.tree_map(lambda z: self._prediction(z[:, :, seen:], log=True), outputs)
        return MetaOutput(loss, losses, prediction, finite)

    def predictions(self, learners: Learners, query_x: Tree) -> Tree:
        """Log-probabilities of `predict`, or its means."""
        predicted = self.predict(learners, query_x)
        return predicted.log() if self.classify else predicted

    def predict(self, learners: Learners, query_x: Tree, *, samples: int | None = None) -> Tree:
        """Predictions for query inputs [T, M, ...], over draws of the adapted weights.

        Args:
            learners: of `adapt`. Called by themselves they are the networks at the means.
            query_x: inputs [T, M, ...].
            samples: draws; None takes `query_samples`.

        Returns:
            Probabilities [T, M, C], the mean of the draws' softmax; without `classify` the mean of their outputs.
        """
        check_count("samples", samples, least=1, optional="query_samples")
        outputs = self._drawn(learners, query_x, samples or self.query_samples)
        return pytree.tree_map(lambda z: self._prediction(z, log=False), outputs)

    def _drawn(self, learners: Learners, x: Tree, samples: int) -> Tree:
        """Outputs [T, S, M, ...] at weights drawn."""
        return learners(_beside(x, self.draw(len(learners.finite), 1, samples)))

    def _prediction(self, outputs: Tensor, *, log: bool) -> Tensor:
        """Of draws [T, S, M, ...] those of all together, [T, M, ...]."""
        if not self.classify:
            return outputs.mean(1)
        if log:
            return outputs.log_softmax(-1).logsumexp(1) - math.log(outputs.shape[1])
        return outputs.softmax(-1).mean(1)

    def _divergence(self, learners: Learners) -> Tensor:
        """KL(q_K ‖ N(θ)) of every task, [T]."""
        theta, phi = dict(self.module.named_parameters()), learners.parameters()
        finite, total = learners.finite, torch.zeros((), device=learners.finite.device)
        for name in _pairs(self.module):
            pair = f"mean.{name}", f"log_std.{name}"
            start = [theta[key] for key in pair]
            # a diverged task's 0 · NaN must not reach θ
            fast = [
                torch.where(finite.view(-1, *(1,) * s.dim()), phi[key], s.detach())
                for key, s in zip(pair, start, strict=True)
            ]
            total = total + gaussian_kl(*fast, *start).flatten(1).sum(1)
        return total

    def _hyper_prior(self) -> Tensor:
        """−log p(θ), times its weight."""
        theta, (a, b) = dict(self.module.named_parameters()), self.gamma
        terms: list[Tensor] = []
        for name in _pairs(self.module):
            mean, log_std = theta[f"mean.{name}"], theta[f"log_std.{name}"]
            terms.append((0.5 * mean.square() + 0.5 * math.log(2 * math.pi)).sum())
            density = a * math.log(b) - math.lgamma(a) - 2 * (a - 1) * log_std - b * (-2 * log_std).exp()
            terms.append(-density.sum())
        return self.prior_weight * torch.stack(terms).sum()


class _OverDraws(nn.Module):
    """The mean of a loss over draws: of outputs [S, N, ...] and targets [N, ...]."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tree, targets: Tree) -> Tensor:
        leaves, spec = pytree.tree_flatten(outputs)
        draws = [self.loss(pytree.tree_unflatten(list(one), spec), targets) for one in zip(*leaves, strict=True)]
        return torch.stack(draws).mean()


def _pairs(model: nn.Module) -> list[str]:
    """Names of the network's trainable parameters."""
    means: nn.Module = model.mean  # pyright: ignore[reportAssignmentType]
    return [name for name, p in means.named_parameters() if p.requires_grad]


def _check_pairs(model: nn.Module) -> None:
    """Every mean that moves has a log σ that moves, in the same order: rows are taken apart in the middle."""
    spread: nn.Module = model.log_std  # pyright: ignore[reportAssignmentType]
    names = [name for name, p in spread.named_parameters() if p.requires_grad]
    if names != _pairs(model):
        other = sorted({*names} ^ {*_pairs(model)})
        raise ValueError(
            f"model has means and log standard deviations that do not belong together: {other}; freeze a parameter "
            "before Gaussian(model) is made, not afterwards"
        )


def _beside(x: Tree, noise: Tensor) -> dict[str, Any]:
    return {"inputs": x, "noise": noise}


def _joined(a: Any, b: Any) -> Any:
    return torch.cat([a, b], 1) if isinstance(a, Tensor) else a


def _task(tree: Tree, t: int) -> Tree:
    return pytree.tree_map(lambda x: x[t] if isinstance(x, Tensor) else x, tree)
