"""Networks of the unlabelled families through the engine, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from meta_steps import assert_agrees_with_reference
from torch.nn import functional as F

from fastmeta.models import build_model, head_of
from fastmeta.tasks import Forecast, Images, MaskedText, SelfSupervised, as_text, draw_waves

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_double(episodes):
    return type(episodes)(*(x.double() if x.is_floating_point() else x for x in episodes))


def test_resnet():
    """Batch norm and residual branches, over rotations."""
    images = Images(torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=generator()), None)
    episodes = SelfSupervised(images, ways=3, shots=1, queries=1).sample(2, generator())
    model = build_model("resnet18", shape=(3, 8, 8), ways=3, channels=2).double()
    learner = assert_agrees_with_reference(model, in_double(episodes))
    assert "opaque" not in learner.explain()


def test_resnet_is_the_published_one():
    model = build_model("resnet18", ways=10, shape=(3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert model[:-3](torch.rand(2, 3, 32, 32)).shape == (2, 512, 4, 4)


@pytest.mark.parametrize("name", ["forecast-mlp", "forecast-lstm"])
def test_forecasters(name):
    episodes = Forecast(draw_waves(5), window=5, horizon=2, shots=4, queries=3).sample(2, generator())
    model = build_model(name, shape=(5, 2, 1), width=6).double()
    assert model(episodes.query_x[0].double()).shape == episodes.query_y[0].shape
    learner = assert_agrees_with_reference(model, in_double(episodes), loss=F.mse_loss)
    assert "opaque" not in learner.explain()


def test_transformer():
    text = as_text("what is past is prologue, " * 9)
    episodes = MaskedText(text, length=6, passage=40, masked=0.4, shots=3, queries=2).sample(2, generator())
    model = build_model("transformer", shape=(text.symbols, 6), width=8).double()
    assert_agrees_with_reference(model, episodes)


def test_a_zero_head_is_zero():
    for name in ("conv4", "resnet18"):
        head = head_of(build_model(name, zero_head=True, channels=2))
        assert all((p == 0).all() for p in head.parameters())
    with pytest.raises(ValueError, match="Sequential has no linear layer at its end"):
        head_of(build_model("forecast-mlp", shape=(3, 1, 1)))


def test_unknown_model():
    with pytest.raises(ValueError, match=r"model must be one of sinusoid-mlp, conv4, .*got 'vgg'"):
        build_model("vgg")
