"""MetaGAN: few-shot learning against a generator of fakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.engine.batch import TaskBatch, Tree, finite_tasks
from fastmeta.engine.boundary import outside_of_compile
from fastmeta.engine.labels import IGNORED, check_class_labels
from fastmeta.engine.meta_step import finite_count
from fastmeta.engine.options import check_count
from fastmeta.engine.session import Call, PlanCache
from fastmeta.optim.base import InnerRule, State

from .base import MetaLearner
from .maml import MAML
from .outputs import Learners, accumulated, check_gradients_on

UNLABELLED = -1
"""The label of real samples whose class is not known."""

_OWN = ("inner_loss", "outer_loss", "inner_batch_size", "bn_statistics")


class MetaGANArguments(TypedDict, total=False):
    """The options that `MetaGAN` hands on. `fastmeta.MetaLearner` describes them."""

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


class MetaGANOutput(NamedTuple):
    """What a meta-step gives.

    Attributes:
        loss: L_D, mean over the tasks that stayed finite; `loss.backward()` gives the discriminator the gradient of L_D
            and the generator that of L_G.
        task_losses: [T] L_D of each task, differentiable likewise.
        outputs: logits of the C classes for the query samples [T, M, C]; not differentiable.
        finite: [T] bool, as `fastmeta.MetaOutput.finite`.
        generator_loss: L_G, mean over the finite tasks; without a graph.
    """

    loss: Tensor
    task_losses: Tensor
    outputs: Tensor
    finite: Tensor
    generator_loss: Tensor


class MetaGAN(MAML):
    """MetaGAN with MAML as the learner (Zhang et al. 2018): a classifier of C + 1 classes, the last of which is "fake".

        L_D = −E log p(y | x, y ≤ C) − E_u log p(y ≤ C | u) − E_z log p(C+1 | G(z, code))
        L_G = −E_z log p(y ≤ C | G(z, code))
        φ_{k+1} = φ_k − α ∇L_D(φ_k; support set and fakes);   θ by ∇L_D(φ_K), the generator by ∇L_G(φ_K)

    p(y | x, y ≤ C) is the softmax over C logits, log p(y ≤ C) = logsumexp of C − logsumexp of all; expectations are
    means over a task's samples. L_G reaches the generator through the query set's fakes and, unless
    `through_support=False`, through those of the inner loop, by second derivatives.

    Semi-supervised: a real sample of label −1 is unlabelled. The u of a task are its unlabelled samples, or all real
    ones where it has none; the first term is a mean over the labelled. That covers unlabelled samples within tasks as
    well as tasks without any label (`support_y=None` or all −1), whose first term is 0. Label −100 is padding and
    counts for nothing. Each set, real or fake, passes the discriminator as a batch of its own, which matters to batch
    norm.

    About twice the cost of MAML: a second inner loop and adjoint, along which data get their gradients, for L_G.

    Args:
        discriminator: samples [N, ...] → logits [N, C + 1]; it is `module`.
        generator: [B, noise + code] → samples [B, ...], such as `fastmeta.models.ImageGenerator`. It runs on all tasks'
            vectors in one batch, so that a batch norm in it would mix tasks.
        ways: C.
        noise: width of z, standard normal.
        encoder: samples [B, ...] → [B, code]; the task's code is the mean over its labelled support samples (over all
            real ones, where there is no label). It learns with the generator, and runs on all tasks as one batch. None:
            the samples themselves, flattened.
        through_support: whether L_G reaches the generator through the inner loop's fakes too.

    inner_optimizer, inner_steps, inner_clip_norm, first_order, backend, compile, memory, task_chunk, precision and
    proof are described at `fastmeta.MetaLearner`. Noise is drawn from PyTorch's generator for all tasks before they are
    cut into chunks. Learners of `adapt(...)` give the logits of the C classes alone.

    Raises:
        TypeError, ValueError: an option out of range; the message lists what is legal.

    Example:
        >>> metagan = fastmeta.MetaGAN(conv4(6), ImageGenerator(784 + 64), ways=5, noise=64, inner_steps=5)
        >>> d = torch.optim.Adam(metagan.module.parameters())
        >>> g = torch.optim.Adam(metagan.generator.parameters())
        >>> metagan(support_x, support_y, query_x, query_y).loss.backward()
    """

    def __init__(
        self, discriminator: nn.Module, generator: nn.Module, *, ways: int, noise: int,
        encoder: nn.Module | None = None, through_support: bool = True, **options: Unpack[MetaGANArguments],
    ) -> None:  # fmt: skip
        check_count("ways", ways, least=2)
        check_count("noise", noise, least=1)
        for name, module in (("generator", generator), ("encoder", encoder)):
            if not isinstance(module, nn.Module) and not (module is None and name == "encoder"):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")
        if type(through_support) is not bool:
            raise TypeError(f"through_support must be True or False, got {through_support!r}")
        self.ways, self.noise, self.through_support = ways, noise, through_support
        if type(self).episodes is not MetaLearner.episodes:
            raise TypeError("MetaGAN makes its own episodes; change the data before the call in place of episodes()")
        if isinstance(discriminator, nn.Module):
            self._sets = (_Sets(discriminator, ways),)  # a tuple: the discriminator is registered as `module`
        self._of_generator = PlanCache()
        super().__init__(discriminator, inner_loss=discriminator_loss, **options)
        self.generator, self.encoder = generator, encoder

    def _change(self, option: str, value: Any) -> None:
        if option in _OWN:
            raise ValueError(f"{option} cannot be set: MetaGAN has its own losses, of sets that are not cut or joined")
        super()._change(option, value)

    @property
    def network(self) -> nn.Module:
        """The discriminator on real samples and fakes."""
        return self._sets[0]

    @outside_of_compile
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, support_x: Tensor, support_y: Tensor | None = None, query_x: Tensor | None = None,
        query_y: Tensor | None = None, *, noise_support: Tensor | None = None, noise_query: Tensor | None = None,
    ) -> MetaGANOutput:  # fmt: skip
        """One meta-step over all tasks.

        Args:
            support_x, query_x: real samples [T, N, ...] and [T, M, ...].
            support_y, query_y: labels int64 [T, N] and [T, M], −1 of unlabelled samples; None: all of them are.
            noise_support, noise_query: z [T, F, noise] of F fakes a task; None draws as many as there are samples.

        Raises:
            TypeError, ValueError: shapes, dtypes or labels that do not fit; the message names the argument.
        """
        code = self._code(support_x, support_y)
        fakes = [
            self._fakes("support_x", support_x, code, "noise_support", noise_support),
            self._fakes("query_x", query_x, code, "noise_query", noise_query),
        ]
        targets = [targets_of("support_y", support_x, support_y, self.ways), None]
        targets[1] = targets_of("query_y", query_x, query_y, self.ways)
        support, query = ({"real": x, "fake": f.detach()} for x, f in zip((support_x, query_x), fakes, strict=True))
        session = self.session(TaskBatch(support, targets[0], query, targets[1]))
        loss, losses, step = session.differentiable_step()
        finite = step.tasks.finite
        self._warn(finite)
        outputs = session.backend.output_tree(step.tasks.outputs)[0][..., : self.ways].detach()
        of_tasks = self._generator_losses(support, targets[0], fakes)
        kept = torch.where(finite, of_tasks, 0.0)
        mean = kept.sum() / finite_count(finite)
        if torch.is_grad_enabled():  # of value 0, and of the generator's gradient
            loss, losses = loss + (mean - mean.detach()), losses + (kept - kept.detach())
        return MetaGANOutput(loss, losses, outputs, finite, mean.detach())

    def accumulate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, support_x: Tensor, support_y: Tensor | None = None, query_x: Tensor | None = None,
        query_y: Tensor | None = None, *, noise_support: Tensor | None = None, noise_query: Tensor | None = None,
    ) -> MetaGANOutput:  # fmt: skip
        """As `MetaLearner.accumulate`, on what `forward` takes: the gradients of L_D and, for the generator, of L_G."""
        check_gradients_on()
        call = cast(Callable[..., Any], self)  # the call is typed as every learner's
        out: MetaGANOutput = call(
            support_x, support_y, query_x, query_y, noise_support=noise_support, noise_query=noise_query
        )
        return accumulated(out)

    def _generator_losses(self, support: dict[str, Tensor], targets: Tree, fakes: list[Tensor]) -> Tensor:
        """L_G [T] at the adapted discriminators, differentiable in the generator alone."""
        learns = torch.is_grad_enabled() and any(f.requires_grad for f in fakes)
        inputs = [f.detach().requires_grad_(learns) for f in fakes]
        if not self.through_support:
            inputs[0] = inputs[0].detach()
        batch = TaskBatch({"real": support["real"], "fake": inputs[0]}, targets, {"fake": inputs[1]})
        options = replace(self.options, outer_loss=generator_loss)
        weights = self.weights(self.inner_steps)
        call = Call(self.inner_steps, self._moves, None, weights)
        session = self._of_generator.open(self.network, options, batch, call)
        _, losses, step = session.differentiable_step()
        if not learns:
            return losses.detach()
        wanted = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(losses.sum(), wanted, allow_unused=True))
        total = losses.detach()
        for x, fake in zip(inputs, fakes, strict=True):
            d = next(found) if x.requires_grad else None
            if d is not None:  # a product whose derivative is d: each task's losses depend on its own fakes alone
                term = (torch.where(_wide(step.tasks.finite, fake), d, 0.0) * fake).flatten(1).sum(1)
                total = total + (term - term.detach())
        return total

    @outside_of_compile
    def adapt(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, support_x: Tensor, support_y: Tensor | None = None, *, steps: int | None = None,
        noise: Tensor | None = None,
    ) -> Learners:  # fmt: skip
        """Adapts the discriminator to every task's support set and to fakes; the learners give logits of C classes.

        Args:
            support_x, support_y: as `forward` takes them.
            steps: inner steps; None takes `inner_steps`.
            noise: z [T, F, noise] of the fakes; None draws as many as there are samples.
        """
        return self._adapted(support_x, support_y, steps, None, noise)

    def _adapted(
        self, support_x: Tree, support_y: Tree, steps: int | None, going_on: tuple[Tensor, State, int] | None,
        noise: Tensor | None = None,
    ) -> Learners:  # fmt: skip
        fakes = self._fakes("support_x", support_x, self._code(support_x, support_y), "noise", noise)
        if not self.through_support:
            fakes = fakes.detach()
        targets = targets_of("support_y", support_x, support_y, self.ways)
        return super()._adapted({"real": support_x, "fake": fakes}, targets, steps, going_on)

    def _code(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The tasks' codes [T, D]: means over the labelled samples, or over all where a task has none."""
        real = labels_of("support_y", x, labels, self.ways)
        x = torch.where(_wide(finite_tasks(x), x), x, 0.0)  # a NaN would reach the generator's weights
        each = x.flatten(0, 1) if self.encoder is None else self.encoder(x.flatten(0, 1))
        weights = _share(real >= 0, real != IGNORED).to(each.dtype)
        return torch.einsum("tn,tnd->td", weights, each.reshape(*x.shape[:2], -1))

    def _fakes(self, name: str, x: Tensor | None, code: Tensor, noise_name: str, noise: Tensor | None) -> Tensor:
        """As many fakes as samples, or as z are handed in, [T, F, ...]."""
        if not isinstance(x, Tensor) or x.dim() < 2:
            raise TypeError(f"{name} must be a tensor [T, N, ...] of samples, got {type(x).__name__}")
        tasks = code.shape[0]
        if noise is None:
            noise = torch.randn(tasks, x.shape[1], self.noise, dtype=code.dtype, device=code.device)
        elif noise.dim() != 3 or noise.shape[0] != tasks or noise.shape[2] != self.noise:
            raise ValueError(f"{noise_name} must have shape [{tasks}, F, {self.noise}], got {list(noise.shape)}")
        count = noise.shape[1]
        vectors = torch.cat([noise, code.unsqueeze(1).expand(-1, count, -1)], 2)
        made = self.generator(vectors.flatten(0, 1))
        if made.shape[1:] != x.shape[2:]:
            raise ValueError(
                f"generator must make samples of the shape of {name}, {list(x.shape[2:])}, got {list(made.shape[1:])}"
            )
        return made.unflatten(0, (tasks, count))


class _Sets(nn.Module):
    """The discriminator on a task's real samples, its fakes, or both, each as a batch of its own."""

    def __init__(self, discriminator: nn.Module, ways: int) -> None:
        super().__init__()
        self.discriminator, self.ways = discriminator, ways

    def _logits(self, x: Tensor) -> Tensor:
        y = self.discriminator(x)
        if y.dim() != 2 or y.shape[1] != self.ways + 1:
            raise ValueError(
                f"discriminator must give {self.ways + 1} logits a sample, ways and one for fakes, got outputs of "
                f"shape {list(y.shape)}"
            )
        return y

    def forward(self, real: Tensor | None = None, fake: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of the classes for real samples alone; of all C + 1 for fakes alone; of all for both."""
        if fake is None:
            assert real is not None, "called on samples"
            return self._logits(real)[:, : self.ways]
        return self._logits(fake) if real is None else (self._logits(real), self._logits(fake))


def _fakeness(logits: Tensor) -> Tensor:
    """log p(C+1) − log p(y ≤ C), [N]."""
    return logits[:, -1] - logits[:, :-1].logsumexp(1)


def discriminator_loss(outputs: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """L_D of one task; targets are the weights of classes [N, C] and of real samples that count as such [N]."""
    real, fake = outputs
    labelled, counted = targets
    of_classes = -(labelled * F.log_softmax(real[:, :-1], 1)).sum()
    # logsigmoid: softplus of PyTorch's is linear beyond 20
    of_real = -(counted * F.logsigmoid(-_fakeness(real))).sum()
    return of_classes + of_real - F.logsigmoid(_fakeness(fake)).mean()


def generator_loss(outputs: Tensor, targets: None) -> Tensor:  # noqa: ARG001  as losses are called
    """L_G of one task."""
    return -F.logsigmoid(-_fakeness(outputs)).mean()


def labels_of(name: str, x: Tree, labels: Tensor | None, ways: int) -> Tensor:
    """Labels int64 [T, N], checked; without any all samples are unlabelled."""
    if not isinstance(x, Tensor) or x.dim() < 2:
        raise TypeError(f"{name[:-1]}x must be a tensor [T, N, ...] of samples, got {type(x).__name__}")
    if labels is None:
        return torch.full(x.shape[:2], UNLABELLED, dtype=torch.int64, device=x.device)
    check_class_labels(name, x, labels, ways, besides=(UNLABELLED,))
    return labels


def targets_of(name: str, x: Tree, labels: Tensor | None, ways: int) -> tuple[Tensor, Tensor]:
    """What `discriminator_loss` weighs samples by: [T, N, C] and [T, N]."""
    real = labels_of(name, x, labels, ways)
    classes = (real.unsqueeze(2) == torch.arange(ways, device=real.device)).to(x.dtype)
    labelled = classes / classes.sum((1, 2), keepdim=True).clamp(min=1.0)
    return labelled, _share(real == UNLABELLED, real != IGNORED).to(x.dtype)


def _share(first: Tensor, otherwise: Tensor) -> Tensor:
    """Weights [T, N] of a mean over the samples of `first`, or over those of `otherwise` in tasks that have none."""
    chosen = torch.where(first.any(1, keepdim=True), first, otherwise).double()
    return chosen / chosen.sum(1, keepdim=True).clamp(min=1.0)


def _wide(tasks: Tensor, like: Tensor) -> Tensor:
    return tasks.view(-1, *(1,) * (like.dim() - 1))
