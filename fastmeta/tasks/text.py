"""Masked characters of a passage: a task each."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Episodes, Sampler, Shots, check_count
from .datasets.text import NOT_MASKED, Text


class MaskedText(Sampler):
    """Each task takes one passage; windows of its first half are the support set, of its second half the query set.

    A share of the characters of a window is hidden, at least one: the input holds the mask there and the target their
    numbers, and `NOT_MASKED` everywhere else.

    Args:
        text: copied to `device` once.
        length: characters of a window.
        passage: characters of a passage; a task starts anywhere in the text.
        masked: share of a window's characters that is hidden.
        shots: support windows N of a task.
        queries: query windows M of a task.
        device: where the text lies and episodes are made.

    Raises:
        ValueError: a text shorter than a passage, half a passage shorter than a window, or an option out of range.
    """

    def __init__(
        self,
        text: Text,
        *,
        length: int = 32,
        passage: int = 1000,
        masked: float = 0.15,
        shots: int = 10,
        queries: int = 10,
        device: torch.device | str = "cpu",
    ) -> None:
        check_count("length", length, minimum=2)
        check_count("passage", passage, minimum=2)
        super().__init__(Shots(None, shots, queries), device)
        if not 0 < masked < 1:
            raise ValueError(f"masked must lie between 0 and 1, got {masked!r}")
        if passage // 2 < length:
            raise ValueError(f"passage must be at least twice the length {length}, got {passage}; windows have no room")
        if len(text.tokens) < passage:
            raise ValueError(
                f"{text.title} has {len(text.tokens):,} characters, fewer than one passage of {passage:,}; give more "
                "text or ask for a shorter --passage"
            )
        self.length, self.passage, self.hidden = length, passage, max(round(masked * length), 1)
        self.mask = text.symbols
        self._tokens = text.tokens.to(self.device)

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes: inputs and targets int64 [tasks, N or M, length]."""
        self._check_sample(tasks, generator)
        last = len(self._tokens) - self.passage
        begin = torch.randint(last + 1, (tasks, 1), generator=generator, device=self.device)
        half = self.passage // 2
        support = self._windows(begin, self.shots, generator)
        query = self._windows(begin + half, self.queries, generator)
        return Episodes(*support, *query)

    def _windows(self, begin: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        room = self.passage // 2 - self.length + 1
        shape = (len(begin), count)
        start = begin + torch.randint(room, shape, generator=generator, device=self.device)
        tokens = self._tokens[start.unsqueeze(2) + torch.arange(self.length, device=self.device)]
        keys = torch.rand(tokens.shape, generator=generator, device=self.device)
        hidden = torch.zeros_like(tokens, dtype=torch.bool).scatter_(2, keys.topk(self.hidden, dim=2).indices, True)
        return tokens.masked_fill(hidden, self.mask), tokens.masked_fill(~hidden, NOT_MASKED)
