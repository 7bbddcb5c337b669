"""Predictions from counts: rates, what is low and high, and the table with its empty column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import predict
from .predict import milliseconds, rates
from .report import section

FIGURES = {"launches": 100, "bytes": 4_300_000_000, "FLOP": 2_000_000_000, "model FLOP": 1_000_000_000}


def test_low_hides_products_behind_bytes_and_high_adds_all():
    low, high = milliseconds(FIGURES, "tf32", 64)
    assert low == pytest.approx(1.0 + 0.25)  # a millisecond of copying, 100 launches
    assert high == pytest.approx(2e9 / (0.30 * 395e12) * 1e3 + 4.3e9 / 3.2e12 * 1e3 + 0.3)
    fewer, _ = milliseconds(FIGURES | {"bytes": 0, "model FLOP": 150_100_000_000}, "tf32", 64)
    assert fewer == pytest.approx(1.0 + 0.25, rel=1e-3)


def test_rates_fall_from_bfloat16_to_float32_and_with_channels():
    for channels in predict.REACHABLE:
        (b, bw), (t, tw), (f, fw) = (rates(p, channels) for p in ("bfloat16", "tf32", "float32"))
        assert b == 2 * t
        assert bw == 2 * tw
        assert f <= t
        assert fw == pytest.approx(tw / 3)
    assert rates("tf32", 32)[0] < rates("tf32", 64)[0]


def test_the_table_leaves_what_is_measured_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    rows = [
        {"workload": "omniglot-20w1s", "precision": "tf32", "sizes": {"T": 32, "K": 5}, "bytes of images": 4.0e9,
         "fused bytes": 2.0e9, **FIGURES, "low ms": 1.25, "high ms": 2.5}
    ]  # fmt: skip
    monkeypatch.setattr(predict, "predictions", lambda workloads, processes: rows)
    result = predict.run(["omniglot-20w1s"], processes=1, out=tmp_path / "predictions.json")
    assert json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8")) == result
    lines = section(result).splitlines()
    assert lines[-1] == "| omniglot-20w1s (T=32, K=5) | tf32 | 100 | 1 | 2 | 4,300 | 2.00 | 1.25–2.50 |  |"
    assert lines[2].endswith("| predicted, ms | measured, ms |")
