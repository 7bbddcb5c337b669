"""Expected calibration error: by hand, of a calibrated and of an overconfident classifier, and its picture."""

from __future__ import annotations

import pytest
import torch

from fastmeta.train.scores.calibration import expected_calibration_error


def test_by_hand():
    """Three predictions: 0.9 right and 0.9 wrong in one bin, 0.6 right in another, of four bins."""
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
    found = expected_calibration_error(p, torch.tensor([0, 0, 1]), bins=4)
    assert found.count.tolist() == [0, 0, 1, 2]
    assert found.error == pytest.approx((2 * abs(0.5 - 0.9) + abs(1.0 - 0.6)) / 3)
    assert found.accuracy[3].item() == 0.5
    assert found.confidence[2].item() == pytest.approx(0.6)
    assert "40.00 % of 3" in str(found)


def test_bounds_count_to_the_bin_below_and_certainty_to_the_last():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    assert expected_calibration_error(p, torch.tensor([0, 0]), bins=2).count.tolist() == [1, 1]


def test_a_calibrated_classifier_has_little_error_and_an_overconfident_one_much():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, 5000, 5, generator=generator)
    p = logits.softmax(-1)
    labels = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(4, 5000)
    calibrated = expected_calibration_error(p, labels)
    overconfident = expected_calibration_error((3 * logits).softmax(-1), labels)
    assert calibrated.error < 0.02
    assert overconfident.error > 0.15
    assert calibrated.count.sum() == 20000


def test_bad_input():
    p, y = torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"got \[3, 2\] and \[2\]"):
        expected_calibration_error(p, y[:2])
    with pytest.raises(ValueError, match="softmax"):
        expected_calibration_error(2 * p, y)
    with pytest.raises(ValueError, match="softmax"):
        expected_calibration_error(torch.full((3, 2), torch.nan), y)
    with pytest.raises(ValueError, match="bins"):
        expected_calibration_error(p, y, bins=0)


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from fastmeta.train.scores.plots import plot_reliability

    p = torch.rand(50, 3).softmax(-1)
    found = expected_calibration_error(p, torch.randint(3, (50,)))
    plot_reliability({"MAML": found, "ABML": found}, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes()[1:4] == b"PNG"
