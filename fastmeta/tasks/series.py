"""Forecasting tasks: a group of series each."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Episodes, Sampler, Shots, check_count
from .datasets.class_table import pad
from .datasets.series import Series


class Forecast(Sampler):
    """Each task takes one group: windows of some of its series are the support set, of others the query set.

    A window is normalised, so that place and size do not matter: its last value is subtracted, and all is divided by
    the root mean square of the windows' steps in the support set of the task. The target is the `horizon` steps behind
    it, normalised alike.

    Args:
        series: copied to `device` once. Every group needs two series that are long enough, or one of twice the length.
        window: steps of an input.
        horizon: steps to predict.
        shots: support windows N of a task.
        queries: query windows M of a task.
        device: where series lie and episodes are made.

    Raises:
        ValueError: series shorter than window + horizon, or a count out of range.
    """

    def __init__(
        self,
        series: Series,
        *,
        window: int = 8,
        horizon: int = 1,
        shots: int = 10,
        queries: int = 10,
        device: torch.device | str = "cpu",
    ) -> None:
        check_count("window", window, minimum=2)
        check_count("horizon", horizon)
        super().__init__(Shots(None, shots, queries), device)
        self.window, self.horizon = window, horizon
        self.features = series.features
        support, query = _starts(series, window + horizon)
        self._values = series.values.to(self.device)
        self._starts = [part.to(self.device) for part in (support, query)]

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes: inputs [tasks, N or M, window, features], targets [..., horizon, features]."""
        self._check_sample(tasks, generator)
        group = torch.randint(len(self._starts[0]), (tasks,), generator=generator, device=self.device)
        parts = [
            self._windows(starts[group], count, generator)
            for starts, count in zip(self._starts, (self.shots, self.queries), strict=True)
        ]
        steps = parts[0][:, :, : self.window].diff(dim=2)
        scale = steps.square().mean((1, 2, 3), keepdim=True).sqrt_().clamp_min_(1e-6)
        support, query = ((part - part[:, :, self.window - 1 : self.window]) / scale for part in parts)
        w = self.window
        return Episodes(support[:, :, :w], support[:, :, w:], query[:, :, :w], query[:, :, w:])

    def _windows(self, starts: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """[tasks, count, window + horizon, features] from `starts` [tasks, most], padded with −1."""
        held = (starts >= 0).sum(1, keepdim=True)
        which = torch.rand(len(starts), count, generator=generator, device=self.device).mul_(held).long()
        first = starts.gather(1, which.clamp_max_(starts.shape[1] - 1))
        return self._values[first.unsqueeze(2) + torch.arange(self.window + self.horizon, device=self.device)]


def _starts(series: Series, length: int) -> tuple[Tensor, Tensor]:
    """Where windows may start, for the support and the query set of each group, [groups, most] padded with −1.

    Of the series of a group that are long enough, the first half serve the one and the rest the other; one alone is cut
    in the middle.
    """
    ends = series.lengths.cumsum(0)
    begins = ends - series.lengths
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for number, name in enumerate(series.names):
        spans = [
            (begin, end)
            for begin, end in zip(
                begins[series.group == number].tolist(), ends[series.group == number].tolist(), strict=True
            )
            if end - begin >= length
        ]
        if len(spans) == 1 and spans[0][1] - spans[0][0] >= 2 * length:
            (begin, end) = spans[0]
            spans = [(begin, (begin + end) // 2), ((begin + end) // 2, end)]
        if len(spans) < 2:
            longest = int(series.lengths[series.group == number].max())
            raise ValueError(
                f"{name} needs two series of at least {length} steps (window + horizon), or one of {2 * length}, its "
                f"longest has {longest}; ask for a shorter window"
            )
        middle = len(spans) // 2
        for half, part in zip(halves, (spans[:middle], spans[middle:]), strict=True):
            half.append(torch.cat([torch.arange(begin, end - length + 1) for begin, end in part]))
    return pad(halves[0]), pad(halves[1])
