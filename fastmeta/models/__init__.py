"""The networks of the command line, by name, as plain modules that a script may use as well."""

from __future__ import annotations

from torch import nn

from .autoencoder import ClusteringAutoencoder
from .few_shot import conv4, sinusoid_mlp
from .forecast import ForecastLSTM, forecast_mlp
from .resnet import resnet18
from .siren import Sine, siren
from .transformer import MaskedTransformer

__all__ = [
    "MODELS",
    "ClusteringAutoencoder",
    "ForecastLSTM",
    "MaskedTransformer",
    "Sine",
    "build_model",
    "conv4",
    "forecast_mlp",
    "head_of",
    "resnet18",
    "sinusoid_mlp",
    "siren",
]

MODELS = {
    "sinusoid-mlp": "Linear 1-40-40-1 with ReLU (Finn et al. 2017)",
    "conv4": "four strided convolutions, mean over positions (the MAML paper's Omniglot code)",
    "conv4-flat": "the same, whose head sees all positions",
    "conv4-pooled": "four convolutions with max-pooling (Vinyals et al. 2016)",
    "resnet18": "ResNet-18 in its CIFAR form (He et al. 2016): 3 × 3 stem, no pooling before the blocks",
    "autoencoder": "convolutional encoder and decoder with cluster centres (after Xie et al. 2016)",
    "forecast-mlp": "two hidden layers on a whole window",
    "forecast-lstm": "an LSTM cell unrolled over the window",
    "transformer": "encoder of two layers over characters",
}
"""Names that `build_model` takes, with one line each."""


def build_model(
    name: str,
    *,
    shape: tuple[int, ...] = (1, 28, 28),
    ways: int = 5,
    channels: int = 64,
    width: int = 64,
    latent: int = 16,
    zero_head: bool = False,
) -> nn.Module:
    """A freshly initialised network (PyTorch's default initialisation, from the global generator).

    Args:
        name: one of `MODELS`.
        shape: of the data. Images: (channels, H, W); forecasting: (window, horizon, features); text: (symbols, length).
        ways: outputs of a classifier; clusters of an autoencoder.
        channels: filters of a convolution (a ResNet's first; an autoencoder's first).
        width: hidden units of a forecaster or transformer.
        latent: dimensions of an autoencoder's code.
        zero_head: a classifier's last layer starts at zero. Labels are shuffled in every task, so a head that
            prefers some of them is noise to unlearn (Kao, Chiu, Chen 2022, "MAML is a noisy contrastive learner").

    Raises:
        ValueError: for another name.
    """
    if name == "sinusoid-mlp":
        return sinusoid_mlp()
    if name in {"forecast-mlp", "forecast-lstm"}:
        window, horizon, features = shape
        build = forecast_mlp if name == "forecast-mlp" else ForecastLSTM
        return build(window, horizon, features, width=width)
    if name == "transformer":
        symbols, length = shape
        return MaskedTransformer(symbols, length, width=width)
    if name == "autoencoder":
        return ClusteringAutoencoder(shape, clusters=ways, latent=latent, channels=channels)
    if name == "resnet18":
        model = resnet18(ways, channels=channels, inputs=shape[0])
    elif name in MODELS:
        model = conv4(ways, channels=channels, pooled=name == "conv4-pooled", mean=name == "conv4", shape=shape)
    else:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
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
