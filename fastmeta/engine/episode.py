"""An encoder and a classifier on its features as one module on a whole task."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fastmeta.internals import pytree
from fastmeta.program.tree import call_with

from .batch import Tree


class Head(nn.Module, ABC):
    """A classifier of one task in closed form; its parameters, if it has any, are learned with the encoder."""

    @abstractmethod
    def forward(self, support: Tensor, members: Tensor, query: Tensor) -> Tensor:
        """Features [N, D] of the support set, which class each is of [N, C], features [M, D] → logits [M, C]."""
        ...


class Episode(nn.Module):
    """Encoder and head as one module on a whole task, so that a meta-step of the engine without inner steps is a step
    of training. All tasks share its weights."""

    def __init__(self, encoder: nn.Module, head: Head, *, joint: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.joint = encoder, head, joint

    def _features(self, x: Tree) -> Tensor:
        args, named = call_with(x)
        return self.encoder(*args, **named).flatten(1)

    def forward(self, support_x: Tree, query_x: Tree, members: Tensor, absent: Tensor) -> Tensor:
        """One task's samples [N, ...] and [M, ...], members [N, C], what its classes' logits lose [C] → [M, C]."""
        if self.joint:
            both = pytree.tree_map(lambda a, b: torch.cat([a, b]), support_x, query_x)
            features = self._features(both)
            support, query = features[: members.shape[0]], features[members.shape[0] :]
        else:
            support, query = self._features(support_x), self._features(query_x)
        return self.head(support, members, query) + absent


def no_loss(outputs: Tensor, targets: None) -> Tensor:  # noqa: ARG001  as losses are called
    """Of an inner loop that has no steps."""
    return outputs.mean()
