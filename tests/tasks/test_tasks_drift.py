"""Streams whose task changes while it is learned."""

from __future__ import annotations

import pytest
import torch
from test_tasks_few_shot import numbered, read

from fastmeta.tasks import AlphabetStream, DriftingSinusoids


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def curve(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A cos p and A sin p of each stream's points, by least squares."""
    return torch.linalg.lstsq(torch.cat([x.sin(), -x.cos()], 2), y).solution.squeeze(2)


def test_sinusoids_drift_from_one_curve_to_the_next():
    stream = DriftingSinusoids(phases=2, chunks=4, shots=8, queries=9)
    moments = list(stream.moments(50, generator()))
    assert [moment.phase for moment in moments] == [0] * 4 + [1] * 4
    assert moments[0].test_x.shape == (50, 9, 1)
    assert moments[0].chunk_y.shape == (50, 8, 1)
    found = torch.stack([curve(moment.test_x.double(), moment.test_y.double()) for moment in moments])
    for moment, of_test in zip(moments, found, strict=True):
        of_chunk = curve(moment.chunk_x.double(), moment.chunk_y.double())
        torch.testing.assert_close(of_chunk, of_test, rtol=1e-3, atol=1e-3)
    amplitude, phase = found.norm(dim=2), torch.atan2(found[..., 1], found[..., 0])
    assert amplitude.max() <= 5.001
    for x in (amplitude, phase):  # straight within a phase
        steps = x.diff(dim=0)
        torch.testing.assert_close(steps[0], steps[1], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(steps[4], steps[5], rtol=1e-2, atol=1e-2)
        assert (steps[0] - steps[4]).abs().mean() > 0.05


def test_alphabets_come_one_after_another():
    stream = AlphabetStream(numbered(), phases=3, chunks=2, ways=4, shots=1, queries=2)
    moments = list(stream.moments(40, generator()))
    assert [moment.phase for moment in moments] == [0, 0, 1, 1, 2, 2]
    alphabets = []
    for first, second in zip(moments[::2], moments[1::2], strict=True):
        assert torch.equal(first.test_x, second.test_x)
        x = torch.cat([first.test_x, first.chunk_x, second.chunk_x], 1)
        y = torch.cat([first.test_y, first.chunk_y, second.chunk_y], 1)
        character, drawer = read(x)
        for labels, who, by in zip(y, character, drawer, strict=True):
            assert all(who[labels == label].unique().numel() == 1 for label in range(4)), "a label is one character"
            assert all(by[labels == label].unique().numel() == 4 for label in range(4)), "no drawing comes twice"
        of = numbered().alphabet[character]
        assert (of == of[:, :1]).all()
        alphabets.append(of[:, 0])
    orders = torch.stack(alphabets, 1)
    assert (orders.sort(dim=1).values == torch.arange(3)).all(), "each alphabet once"
    assert len(orders.unique(dim=0)) > 3, "in an order of the stream's own"


def test_streams_repeat_with_the_generator():
    stream = AlphabetStream(numbered(), phases=2, chunks=1, ways=3, shots=1, queries=1)
    for one, two in zip(stream.moments(3, generator()), stream.moments(3, generator()), strict=True):
        assert torch.equal(one.chunk_x, two.chunk_x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phases": 4}, "phases must be at most the number of alphabets, got 4 of 3"),
        ({"ways": 6}, "too few in B"),
        ({"chunks": 3, "shots": 1, "queries": 2}, "got 3 \\+ 2, but a class has only 4"),
        ({"chunks": 0}, "chunks must be an integer of at least 1"),
    ],
)
def test_streams_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        AlphabetStream(numbered(), **{"phases": 2, "chunks": 1, "ways": 3, "shots": 1, "queries": 1, **options})
