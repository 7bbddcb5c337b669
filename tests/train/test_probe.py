"""Linear probe: it reads what features hold, of frozen networks, and says what it needs."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from fastmeta.models import build_model
from fastmeta.tasks import Images
from fastmeta.train.scores.probe import compare_probes, features, linear_probe

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def shades(count: int, *, seed: int, size: int = 16) -> Images:
    """Three classes of grey images, dark to bright, in order of their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count).remainder(3).sort().values
    noise = torch.randint(0, 30, (count, 1, size, size), generator=generator)
    return Images((noise + 80 * labels.view(-1, 1, 1, 1)).byte(), labels)


def mean_network() -> nn.Module:
    """Its one feature is the mean of the pixels."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))


def test_features_are_what_the_last_layer_sees_in_the_images_order():
    images = shades(700, seed=0)
    found = features(mean_network(), images, CPU)
    torch.testing.assert_close(found, images.pixels.float().div(255).mean((2, 3)))


def test_batch_norm_sees_images_of_all_classes():
    """Sorted images, normalised class by class, would all look alike."""
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(1, track_running_stats=False), nn.Linear(1, 3)
    )
    assert linear_probe(model, shades(750, seed=0), shades(750, seed=1), device=CPU).mean == 1.0


def test_what_features_hold_is_read_and_what_they_lack_is_not():
    learn, unseen = shades(300, seed=0), shades(200, seed=1)
    estimate = linear_probe(mean_network(), learn, unseen, device=CPU)
    assert (estimate.mean, estimate.half_width, estimate.count) == (1.0, 0.0, 200)
    shuffled = Images(learn.pixels, learn.labels[torch.randperm(300, generator=torch.Generator().manual_seed(2))])
    chance = linear_probe(mean_network(), shuffled, unseen, device=CPU)
    assert chance.mean < 0.6
    share = chance.mean
    assert chance.half_width == pytest.approx(1.96 * (share * (1 - share) / 199) ** 0.5)


def test_comparison_leaves_the_networks_as_they_are():
    torch.manual_seed(0)
    starts = {name: build_model("resnet18", shape=(1, 16, 16), ways=3, channels=2) for name in ("a", "b")}
    before = {k: v.clone() for k, v in starts["a"].state_dict().items()}
    learn, unseen = shades(90, seed=0), shades(60, seed=1)
    first, again = (compare_probes(starts, learn, unseen, device=CPU) for _ in range(2))
    assert first == again
    assert all(torch.equal(v, before[k]) for k, v in starts["a"].state_dict().items())
    assert not [hook for module in starts["a"].modules() for hook in module._forward_pre_hooks.values()]
    assert first.headline() == (
        "labels by a linear probe on 90 images: accuracy, % over 60 unseen images, 95 % confidence, by inner steps"
    )
    assert {start: list(curve.scores) for start, curve in first.curves.items()} == {"a": [0], "b": [0]}


def test_labels_are_needed():
    with pytest.raises(ValueError, match="a linear probe needs labels; give images in one folder a class"):
        linear_probe(mean_network(), shades(9, seed=0).unlabelled(), shades(9, seed=1), device=CPU)


def test_scikit_learn_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(RuntimeError, match=r'a linear probe needs scikit-learn: pip install "fastmeta\[train\]"'):
        linear_probe(mean_network(), shades(9, seed=0), shades(9, seed=1), device=CPU)
