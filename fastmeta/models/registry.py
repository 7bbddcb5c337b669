"""The networks of the command line, by name: a new one is a file beside this one and an entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from .autoencoder import ClusteringAutoencoder
from .few_shot import conv4, sinusoid_mlp
from .forecast import ForecastLSTM, forecast_mlp
from .modulated_siren import ModulatedSiren
from .padded import PaddedConv4
from .resnet import resnet18
from .transformer import MaskedTransformer


@dataclass(frozen=True)
class Size:
    """What decides the size of a network, see `build_model`."""

    shape: tuple[int, ...]
    ways: int
    channels: int
    width: int
    latent: int
    depth: int


class Network(NamedTuple):
    """A network in a line, and what makes it; it takes from a size what it needs."""

    summary: str
    build: Callable[[Size], nn.Module]


NETWORKS: dict[str, Network] = {
    "sinusoid-mlp": Network("Linear 1-40-40-1 with ReLU (Finn et al. 2017)", lambda size: sinusoid_mlp()),
    "conv4": Network(
        "four strided convolutions, mean over positions (the MAML paper's Omniglot code)",
        lambda size: conv4(size.ways, channels=size.channels, shape=size.shape),
    ),
    "conv4-flat": Network(
        "the same, whose last layer takes all positions",
        lambda size: conv4(size.ways, channels=size.channels, mean=False, shape=size.shape),
    ),
    "conv4-pooled": Network(
        "four convolutions with max-pooling (Vinyals et al. 2016)",
        lambda size: conv4(size.ways, channels=size.channels, pooled=True, shape=size.shape),
    ),
    "conv4-padded": Network(
        "conv4 for tasks of different sizes: its batch norm leaves padding out",
        lambda size: PaddedConv4(size.ways, channels=size.channels, shape=size.shape),
    ),
    "resnet18": Network(
        "ResNet-18 in its CIFAR form (He et al. 2016): 3 × 3 stem, no pooling before the blocks",
        lambda size: resnet18(size.ways, channels=size.channels, inputs=size.shape[0]),
    ),
    "autoencoder": Network(
        "convolutional encoder and decoder with cluster centres (after Xie et al. 2016)",
        lambda size: ClusteringAutoencoder(size.shape, clusters=size.ways, latent=size.latent, channels=size.channels),
    ),
    "forecast-mlp": Network(
        "two hidden layers on a whole window", lambda size: forecast_mlp(*size.shape, width=size.width)
    ),
    "forecast-lstm": Network(
        "an LSTM cell unrolled over the window", lambda size: ForecastLSTM(*size.shape, width=size.width)
    ),
    "modulated-siren": Network(
        "SIREN that a latent code shifts (Dupont et al. 2022: functa, COIN++)",
        lambda size: ModulatedSiren(
            width=size.width, hidden=size.depth, outputs=size.shape[0], latent=size.latent, frequency=30.0
        ),
    ),
    "transformer": Network(
        "encoder of two layers over characters", lambda size: MaskedTransformer(*size.shape, width=size.width)
    ),
}

MODELS = {name: network.summary for name, network in NETWORKS.items()}
"""Names that `build_model` takes, with one line each."""


def build_model(
    name: str,
    *,
    shape: tuple[int, ...] = (1, 28, 28),
    ways: int = 5,
    channels: int = 64,
    width: int = 64,
    latent: int = 16,
    depth: int = 5,
    zero_head: bool = False,
) -> nn.Module:
    """A freshly initialised network (PyTorch's default initialisation, from the global generator).

    Args:
        name: one of `MODELS`.
        shape: of the data. Images: (channels, H, W); forecasting: (window, horizon, features); text: (symbols, length).
        ways: outputs of a classifier; clusters of an autoencoder.
        channels: filters of a convolution (a ResNet's first; an autoencoder's first).
        width: hidden units of a forecaster, transformer or SIREN.
        latent: dimensions of an autoencoder's code, or of an image's.
        depth: hidden layers of a SIREN.
        zero_head: a classifier's last layer starts at zero. Labels are shuffled in every task, so a head that
            prefers some of them is noise to unlearn (Kao, Chiu, Chen 2022, "MAML is a noisy contrastive learner").

    Raises:
        ValueError: for another name, or `zero_head` of a network that has no linear layer at its end.
    """
    if name not in NETWORKS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    model = NETWORKS[name].build(Size(shape, ways, channels, width, latent, depth))
    if zero_head:
        for p in head_of(model).parameters():
            nn.init.zeros_(p)
    return model


def head_of(model: nn.Module) -> nn.Linear:
    """A classifier's last layer.

    Raises:
        ValueError: for a network without one.
    """
    last = list(model.children())[-1]
    if not isinstance(last, nn.Linear):
        raise ValueError(f"{type(model).__name__} has no linear layer at its end")
    return last
