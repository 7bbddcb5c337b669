"""Streams whose task changes while it is learned: sinusoids that drift, alphabets one after another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .base import Shots, check_count, check_generator
from .class_episodes import ClassEpisodes
from .datasets.omniglot import Characters
from .few_shot import character_table


class Moment(NamedTuple):
    """What T streams bring at one time.

    Attributes:
        test_x, test_y: samples of the present task, [T, M, ...]: to be predicted before its chunk is learned from.
        chunk_x, chunk_y: samples to learn from, [T, N, ...].
        phase: how many changes there were before.
    """

    test_x: Tensor
    test_y: Tensor
    chunk_x: Tensor
    chunk_y: Tensor
    phase: int


class Stream(Protocol):
    """A distribution over streams.

    Attributes:
        sudden: whether the task changes between phases alone; else all the time.
    """

    sudden: bool

    def moments(self, streams: int, generator: torch.Generator) -> Iterator[Moment]:
        """Draw `streams` streams and go through them. The same generator state gives the same ones."""
        ...


class DriftingSinusoids:
    """Curves y = A sin(x − p) whose amplitude and phase move, straight from one random curve to the next in each phase.

    Amplitudes, phases and points are distributed as those of `Sinusoid`.

    Args:
        phases: how many random curves are headed for.
        chunks: moments of a phase.
        shots: points to learn from at a moment.
        queries: points to predict.
        device: where the streams are drawn.

    Raises:
        ValueError: for a count below 1.
    """

    sudden = False

    def __init__(
        self, *, phases: int = 6, chunks: int = 5, shots: int = 10, queries: int = 50,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        for name, value in (("phases", phases), ("chunks", chunks), ("shots", shots), ("queries", queries)):
            check_count(name, value)
        self.phases, self.chunks, self.shots, self.queries = phases, chunks, shots, queries
        self.device = torch.device(device)

    def moments(self, streams: int, generator: torch.Generator) -> Iterator[Moment]:
        """Inputs and targets [streams, shots or queries, 1]."""
        check_generator(generator, self.device)

        def uniform(count: int, low: float, high: float) -> Tensor:
            u = torch.rand(streams, count, 1, generator=generator, device=self.device)
            return u.mul_(high - low).add_(low)

        amplitudes, places = uniform(self.phases + 1, 0.1, 5.0), uniform(self.phases + 1, 0.0, math.pi)
        for time in range(self.phases * self.chunks):
            phase, share = time // self.chunks, time % self.chunks / self.chunks
            amplitude, place = (
                torch.lerp(x[:, phase], x[:, phase + 1], share).unsqueeze(1) for x in (amplitudes, places)
            )
            x = uniform(self.queries + self.shots, -5.0, 5.0)
            y = amplitude * torch.sin(x - place)
            m = self.queries
            yield Moment(x[:, :m], y[:, :m], x[:, m:], y[:, m:], phase)


class AlphabetStream:
    """Alphabets one after another, in an order of its own for each stream: in each a few characters to tell apart.

    A phase takes `ways` characters of an alphabet that the stream has not had, `chunks` times `shots` drawings of each
    to learn from, and `queries` others to predict, the same ones all along the phase. Their labels, 0 to ways − 1, were
    other characters' in the phase before.

    Args:
        characters: of at least `phases` alphabets, each of at least `ways` characters.
        phases: how many alphabets.
        chunks: moments of a phase.
        ways, shots, queries: characters; drawings of each to learn from at a moment; drawings of each to predict.
        device: where images lie and streams are drawn.

    Raises:
        ValueError: for a count out of range, or too few alphabets, characters or drawings.
    """

    sudden = True

    def __init__(
        self, characters: Characters, *, phases: int = 6, chunks: int = 5, ways: int = 5, shots: int = 1,
        queries: int = 5, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        for name, value in (("phases", phases), ("chunks", chunks)):
            check_count(name, value)
        self.counts, self.phases, self.chunks, self.device = (
            Shots(ways, shots, queries),
            phases,
            chunks,
            torch.device(device),
        )
        if phases > len(characters.alphabets):
            raise ValueError(
                f"phases must be at most the number of alphabets, got {phases} of {len(characters.alphabets)}; ask for "
                "fewer phases or give more alphabets"
            )
        table = character_table(characters, ways=ways, within_alphabet=True, device=device)
        self._tasks = _OfAlphabet(table, ways=ways, shots=shots * chunks, queries=queries, device=device)
        self._alphabets = len(characters.alphabets)

    def moments(self, streams: int, generator: torch.Generator) -> Iterator[Moment]:
        """Images float32 [streams, ways · shots or ways · queries, 1, 28, 28] in [0, 1], labels int64."""
        check_generator(generator, self.device)
        keys = torch.rand(streams, self._alphabets, generator=generator, device=self.device)
        order = keys.argsort(dim=1)
        n = self.counts.shots * self._tasks.ways
        for phase in range(self.phases):
            self._tasks.groups = order[:, phase]
            x, y, test_x, test_y = self._tasks.sample(streams, generator)
            for chunk in range(self.chunks):
                own = slice(chunk * n, (chunk + 1) * n)
                yield Moment(test_x, test_y, x[:, own], y[:, own], phase)


class _OfAlphabet(ClassEpisodes):
    """Episodes of the alphabets in `groups` [tasks] instead of random ones."""

    groups: Tensor

    def _draw_groups(self, tasks: int, generator: torch.Generator) -> Tensor:
        return self.groups
