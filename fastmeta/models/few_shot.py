"""The networks of the published few-shot experiments, as plain `nn.Sequential`s."""

from __future__ import annotations

from torch import nn

MODELS = ("sinusoid-mlp", "conv4", "conv4-flat", "conv4-pooled")
"""Names that `build_model` takes."""


def build_model(name: str, *, ways: int = 5, channels: int = 64, zero_head: bool = False) -> nn.Sequential:
    """A freshly initialised network (PyTorch's default initialisation, from the global generator).

    Args:
        name: one of `MODELS`.
        ways: outputs of a classifier.
        channels: filters of each convolution.
        zero_head: a classifier's last layer starts at zero. Labels are shuffled in every task, so a head that
            prefers some of them is noise to unlearn (Kao, Chiu, Chen 2022, "MAML is a noisy contrastive learner").

    Raises:
        ValueError: for another name.
    """
    if name == "sinusoid-mlp":
        return sinusoid_mlp()
    if name in MODELS:
        model = conv4(ways, channels=channels, pooled=name == "conv4-pooled", mean=name == "conv4")
        if zero_head:
            for p in model[-1].parameters():
                nn.init.zeros_(p)
        return model
    raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")


def sinusoid_mlp() -> nn.Sequential:
    """Linear 1-40-40-1 with ReLU: [N, 1] → [N, 1] (Finn, Abbeel, Levine 2017, section 5.1)."""
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def conv4(ways: int, *, channels: int = 64, pooled: bool = False, mean: bool = True) -> nn.Sequential:
    """Four blocks of 3×3 convolution, batch norm, ReLU: [N, 1, 28, 28] → logits [N, ways].

    Args:
        ways: classes.
        channels: filters of each convolution.
        pooled: False: convolutions of stride 2 (28 → 14 → 7 → 4 → 2), as in the MAML paper's Omniglot code. True:
            stride 1 and 2×2 max-pooling (28 → 14 → 7 → 3 → 1), as in Matching Networks and Prototypical Networks;
            nearly four times the arithmetic.
        mean: without pooling, the head sees the mean of the 2×2 positions, as in that code; else all four, which
            tells similar characters apart better.

    Batch norm keeps no running statistics: a batch is always normalised by itself. The convolutions have no
    bias, which batch norm would take away again.
    """
    layers: list[nn.Module] = []
    for block in range(4):
        inputs = channels if block else 1
        layers.append(nn.Conv2d(inputs, channels, 3, stride=1 if pooled else 2, padding=1, bias=False))
        layers += [nn.BatchNorm2d(channels, track_running_stats=False), nn.ReLU()]
        if pooled:
            layers.append(nn.MaxPool2d(2))
    if mean and not pooled:
        layers.append(nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels if pooled or mean else 4 * channels, ways))
