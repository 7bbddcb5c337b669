"""Proto-MAML: MAML whose classifier starts at each task's own prototypes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn

from fastmeta.engine.adjoint import Unrolled
from fastmeta.engine.batch import TaskBatch, Tree
from fastmeta.engine.episode import no_loss
from fastmeta.engine.labels import Members, check_query_labels
from fastmeta.engine.objective import Data
from fastmeta.engine.options import Options, check_count
from fastmeta.engine.session import Call, PlanCache, Session
from fastmeta.optim.base import State
from fastmeta.optim.sgd import SGD

from .arguments import Arguments
from .features import shared_outputs
from .maml import MAML
from .protonet import means_of_classes


class ProtoMAML(MAML):
    """Proto-MAML (Triantafillou et al. 2020, Meta-Dataset): MAML on an encoder and a linear head made of prototypes.

        c_j = mean of f_θ(x) over the support samples of class j,    W_j = 2 c_j,  b_j = −‖c_j‖²
        φ_0 = (θ, W, b);  φ_{k+1} = φ_k − α ∇L_s(φ_k);    θ ← θ − β ∇_θ mean_t L_q(φ_K)

    The meta-gradient runs through c_j too; in the inner loop the head is a variable of its own. At K = 0 this is
    `fastmeta.ProtoNet` with squared distances, support and query set apart. `first_order=True`, which is what was
    published, takes inner gradients for constants; the gradient through c_j stays.

    Tasks of fewer ways than the widest are exact: a class without support samples has W_j = 0 and b_j = −1e30, so
    that its probability and all its gradients are exactly 0, and a task adapts as it would by itself. A query sample of
    such a class is an error (on a GPU, where looking would wait, a loss of that size). Support samples of label −100,
    padding, enter neither prototypes nor cross-entropy; only batch norms see their inputs. Label smoothing asks for
    the probability of every class, so tasks must then have all ways.

    Beside MAML it costs one pass over the support sets, forward, and once more with its backward pass.

    Args:
        encoder: f_θ, samples [N, ...] → features [N, ...], flattened to [N, features].
        ways: classes of the widest task.
        features: width of what the encoder gives.

    All other arguments are described at `fastmeta.MetaLearner`. The encoder is `module`, and its parameters are all
    that optimisers and checkpoints see: the head is made anew in every task. `adapt(...)` has the heads' fast weights
    as "head.weight" [T, ways, features] and "head.bias" [T, ways], the encoder's as "encoder.…".

    Example:
        >>> encoder = fastmeta.models.conv4(5, channels=64)[:-1]
        >>> maml = fastmeta.ProtoMAML(encoder, ways=5, features=64, inner_optimizer=fastmeta.SGD(lr=0.1), inner_steps=5)
        >>> maml(support_x, support_y, query_x, query_y).loss.backward()
    """

    def __init__(self, encoder: nn.Module, *, ways: int, features: int, **options: Unpack[Arguments]) -> None:
        check_count("ways", ways, least=2)
        check_count("features", features, least=1)
        self.ways, self.features = ways, features
        if isinstance(encoder, nn.Module):
            # in a tuple: the encoder is registered as `module`, and the head is nobody's to train
            self._with_head = (_WithHead(encoder, features, ways),)
        self._of_encoder = PlanCache()
        super().__init__(encoder, **options)
        self._encoding = self.options, _encoding(self.options)

    @property
    def network(self) -> nn.Module:
        """Encoder and head; the parameters of the latter stand for those that every task starts with."""
        network = self._with_head[0]
        p = next(self.module.parameters())
        if (network.head.weight.device, network.head.weight.dtype) != (p.device, p.dtype):
            network.head.to(p)
        return network

    def session(
        self, batch: TaskBatch, *, steps: int | None = None, going_on: tuple[Tensor, State, int] | None = None
    ) -> Session:
        """A meta-batch bound to what runs it."""
        steps = self.inner_steps if steps is None else steps
        batch = self.episodes(batch)
        weights = None if batch.query_x is None else self.weights(steps)

        def start(theta: Tensor, support: Data) -> Tensor:  # noqa: ARG001  the tree, not its leaves
            return self._start(theta, batch)

        call = Call(steps, self._moves, None if going_on is not None else start, weights, going_on)
        return self._plans.open(self.network, self.options, batch, call)

    def _start(self, theta: Tensor, batch: TaskBatch) -> Tensor:
        """φ_0 [T, P] out of a row of the network's parameters [P], of which those of the head are left out."""
        features = self._support_features(batch.support_x)
        members = Members.of(batch.support_x, batch.support_y, self.ways, features.dtype)
        check_query_labels(batch.query_y, members)
        prototypes = means_of_classes(features, members.values)
        weight, bias = 2.0 * prototypes, members.absent - prototypes.square().sum(2)
        layout = self._plans.program(self.network, self.options, adapts=self._moves).layout
        if not {"head.weight", "head.bias"} <= set(layout.names):
            raise ValueError(
                "adapts() must be true of 'head.weight' and 'head.bias', which start at each task's prototypes, and is "
                f"true of {list(layout.names)} alone"
            )
        named = layout.named(theta.unsqueeze(0))
        own = {"head.weight": weight, "head.bias": bias}
        tasks = batch.tasks
        return layout.pack([own.get(n, p.expand(tasks, *p.shape[1:])) for n, p in named.items()], tasks)

    def _support_features(self, support_x: Tree) -> Tensor:
        """f_θ of the support sets [T, N, features], by the engine, differentiable in the encoder's parameters."""
        batch = TaskBatch(support_x)
        if self._encoding[0] is not self.options:
            self._encoding = self.options, _encoding(self.options)
        session = self._of_encoder.open(self.module, self._encoding[1], batch, Call(0))
        features = shared_outputs(session, support_x)
        if not isinstance(features, Tensor) or features[0, 0].numel() != self.features:
            got = list(features.shape[2:]) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"features={self.features} must be the width of what the encoder gives for a sample, got {got}; set "
                "features to it"
            )
        return features.flatten(2)


class _WithHead(nn.Module):
    """Encoder and linear head. The head's own parameters are no task's; they take no random numbers of the user's."""

    def __init__(self, encoder: nn.Module, features: int, ways: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.utils.skip_init(nn.Linear, features, ways)
        generator, bound = torch.Generator().manual_seed(0), 1.0 / math.sqrt(features)
        with torch.no_grad():
            for p in self.head.parameters():
                p.uniform_(-bound, bound, generator=generator)

    def forward(self, *args: Tree, **named: Tree) -> Tensor:
        """A task's samples [N, ...] → logits [N, ways]."""
        return self.head(self.encoder(*args, **named).flatten(1))


def _encoding(options: Options) -> Options:
    """A learner's options for the pass that prototypes are made of: no inner loop, batch norm by the support set."""
    return replace(
        options, inner_loss=no_loss, outer_loss=no_loss, inner_optimizer=SGD(lr=0.0), inner_steps=0,
        inner_batch_size=None, inner_clip_norm=None, bn_statistics="batch", adjoint=Unrolled(), prior=None,
        cuda_graph=False,
    )  # fmt: skip
