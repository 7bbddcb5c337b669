"""Forecasting tasks: pen strokes, tables, waves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omniglot_files import write_folder, write_zip

from fastmeta.tasks import Forecast, as_series, draw_waves, load_series

pytestmark = pytest.mark.usefixtures("one_thread")

STROKES = "strokes_background"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def strokes(characters: int = 2, drawers: int = 3) -> dict[str, bytes]:
    """Every drawing: two strokes along a line, sampled unevenly in time; its slope is the character's number."""
    files = {}
    for character in range(1, characters + 1):
        for drawer in range(1, drawers + 1):
            times = np.cumsum(np.random.default_rng(drawer).integers(8, 60, 60))
            line = "".join(f"{t / 10:.4f},{character * t / 10:.4f},{t}\n" for t in times)
            name = f"{STROKES}/Greek/character{character:02}/{character:04}_{drawer:02}.txt"
            files[name] = f"START\n{line}BREAK\n{line}BREAK\n".encode()
    return files


def test_pen_strokes(tmp_path):
    path = write_zip(tmp_path / "strokes.zip", strokes())
    series = load_series([path])
    assert series.names == ("Greek/character01", "Greek/character02")
    assert torch.bincount(series.group).tolist() == [6, 6]
    assert "12 series of 2 groups" in series.describe()
    steps = series.values[: series.lengths[0]].diff(dim=0)
    torch.testing.assert_close(steps, torch.full_like(steps, 1000 / 30 / 10), atol=1e-3, rtol=0)
    writers = load_series([write_folder(tmp_path / "folder", strokes())], group="writer")
    assert writers.names == ("01", "02", "03")


def test_real_pen_strokes(shared):
    series = load_series([shared / "data/omniglot/strokes_background_small1.zip"])
    assert len(series.names) == 136
    x, y, query, target = Forecast(series, window=8, shots=5, queries=4).sample(9, generator())
    assert [list(part.shape) for part in (x, y, query, target)] == [
        [9, 5, 8, 2],
        [9, 5, 1, 2],
        [9, 4, 8, 2],
        [9, 4, 1, 2],
    ]
    assert all(part.isfinite().all() for part in (x, y, query, target))
    assert 0.2 < x.diff(dim=2).square().mean().sqrt() < 5, "in units of the support set's steps"


def test_tables(tmp_path):
    rows = np.arange(60.0).reshape(30, 2)
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="x,y", comments="")
    np.save(tmp_path / "b.npy", rows[:20])
    series = load_series([tmp_path])
    assert series.names == ("a.csv", "b.npy")
    assert series.lengths.tolist() == [30, 20]
    assert torch.equal(series.values[:30], torch.from_numpy(rows).float())
    assert load_series([tmp_path / "a.csv", tmp_path / "b.npy"]).names == ("a", "b")


def test_windows_are_of_one_group_and_their_target_follows():
    """Group g climbs by g + 1 a step; positions encode time."""
    series = as_series([np.arange(40.0) * (g + 1) for g in range(5)])
    family = Forecast(series, window=4, horizon=2, shots=3, queries=3)
    for part in (0, 2):
        x, y = family.sample(50, generator())[part : part + 2]
        assert (x[:, :, -1] == 0).all(), "the last value seen is the origin"
        torch.testing.assert_close(x.diff(dim=2), torch.ones(50, 3, 3, 1))
        torch.testing.assert_close(y.squeeze(3), torch.tensor([1.0, 2.0]).expand(50, 3, 2))


def test_support_and_query_windows_come_from_different_steps():
    """Values are all different, so that a window's values tell where it lies."""
    table = np.random.default_rng(0).normal(size=(50, 1))
    family = Forecast(as_series([table]), window=3, shots=40, queries=40)
    starts = [part.flatten() for part in family._starts]
    reached = [{int(s) + i for s in part if s >= 0 for i in range(4)} for part in starts]
    assert not reached[0] & reached[1]
    assert reached[0] | reached[1] == set(range(50))
    two = Forecast(as_series([table[:10], table[10:]], group=[0, 0]), window=3)
    assert [part.flatten().tolist() for part in two._starts] == [list(range(7)), list(range(10, 47))]


def test_groups_are_held_out():
    series = draw_waves(10, steps=30)
    first, last = series.split(0.3)
    assert (len(first.names), last.names) == (7, ("wave 7", "wave 8", "wave 9"))
    assert torch.equal(torch.cat([first.values, last.values]), series.values)
    assert last.group.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="at least two are needed to hold one out"):
        draw_waves(1).split(0.5)


def test_the_generator_decides():
    assert draw_waves(4, seed=1).fingerprint() == draw_waves(4, seed=1).fingerprint()
    assert draw_waves(4, seed=1).fingerprint() != draw_waves(4, seed=2).fingerprint()
    family = Forecast(draw_waves(6), shots=3, queries=2)
    first, again, other = (family.sample(4, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.support_x, other.support_x)


def test_series_shorter_than_the_window():
    series = as_series([np.zeros(50), np.zeros(9)])
    message = r"series 1 needs two series of at least 9 steps \(window \+ horizon\), or one of 18, its longest has 9"
    with pytest.raises(ValueError, match=message):
        Forecast(series, window=8)
    Forecast(as_series([np.zeros(18)]), window=8)


@pytest.mark.parametrize("options", [{"window": 1}, {"horizon": 0}, {"shots": 0}, {"queries": 0}])
def test_bad_options(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))} must be an integer"):
        Forecast(draw_waves(3), **options)


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("x.csv", b"1,2\n3,four\n", r"x\.csv is no table of numbers"),
        ("x.npy", b"nothing", r"x\.npy is no table of numbers"),
        ("x.csv", b"1,nan\n", "holds NaN or infinity"),
        ("Greek/character01/0001_01.txt", b"START\n1,2\n", r"line 2: expected 'x,y,t', START or BREAK, got '1,2'"),
        ("Greek/character01/0001_01.txt", b"START\nBREAK\n", "holds no stroke"),
        ("readme.md", b"", "holds no series: neither"),
    ],
)
def test_bad_files(tmp_path, name, data, message):
    with pytest.raises(ValueError, match=message):
        load_series([write_folder(tmp_path / "data", {name: data})])


def test_bad_arrays():
    with pytest.raises(ValueError, match="with as many features"):
        as_series([np.zeros((4, 2)), np.zeros((4, 3))])
    with pytest.raises(ValueError, match="with as many features"):
        as_series([])
