"""The networks and losses of the workloads, by the names that `workloads.py` gives them.

All but the last two are `nn.Sequential`s of well-known layers, so that a peer outside PyTorch can read them layer by
layer. Their convolutions have a bias, which torchbench's and learn2learn's have and `fastmeta.models.conv4` leaves out.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.models import siren

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}
"""Means over the samples of one task."""


def sinusoid_mlp(width: int) -> nn.Sequential:
    """1-width-width-1 with ReLU; 40 wide it is `fastmeta.models.sinusoid_mlp` (Finn et al. 2017, section 5.1)."""
    return nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def conv4(*, in_channels: int, channels: int, image: int, ways: int) -> nn.Sequential:
    """Four blocks of 3×3 convolution, batch norm, ReLU and 2×2 max-pool, then a linear head."""
    side = image // 16
    blocks = [_block(c, channels, padding=1) for c in (in_channels, channels, channels, channels)]
    return nn.Sequential(*(m for block in blocks for m in block), nn.Flatten(), nn.Linear(channels * side**2, ways))


def conv3(channels: int) -> nn.Sequential:
    """Three blocks without padding and a head of 5 on 28×28: torchbench's `functorch_maml_omniglot`."""
    blocks = [_block(c, channels, padding=0) for c in (1, channels, channels)]
    return nn.Sequential(*(m for block in blocks for m in block), nn.Flatten(), nn.Linear(channels, 5))


def _block(inputs: int, outputs: int, *, padding: int) -> list[nn.Module]:
    norm = nn.BatchNorm2d(outputs, track_running_stats=False)
    return [nn.Conv2d(inputs, outputs, 3, padding=padding), norm, nn.ReLU(), nn.MaxPool2d(2)]


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def mobilenet(channels: int, *, ways: int) -> nn.Sequential:
    """MobileNetV2 (Sandler et al. 2018) for small images: a stem, five inverted residuals, a wide end."""
    blocks: list[nn.Module] = [_stage(3, channels, kernel=3, stride=2)]
    inputs = channels
    for factor, outputs, stride in ((1, channels, 1), (6, channels, 1), (6, 2 * channels, 2), (6, 2 * channels, 1),
                                    (6, 4 * channels, 2)):  # fmt: skip
        blocks.append(_inverted_residual(inputs, outputs, factor=factor, stride=stride))
        inputs = outputs
    blocks.append(_stage(inputs, 8 * channels, kernel=1))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * channels, ways))


def _inverted_residual(inputs: int, outputs: int, *, factor: int, stride: int) -> nn.Module:
    """Wider by `factor`, a convolution of every channel by itself, and narrow again without an activation."""
    hidden = factor * inputs
    widen = [_stage(inputs, hidden, kernel=1)] if factor > 1 else []
    depthwise = _stage(hidden, hidden, kernel=3, stride=stride, groups=hidden)
    block = nn.Sequential(*widen, depthwise, _stage(hidden, outputs, kernel=1)[:2])
    return Residual(block) if stride == 1 and inputs == outputs else block


def _stage(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(outputs, track_running_stats=False)
    return nn.Sequential(convolution, norm, nn.ReLU6(inplace=True))


class NextWord(nn.Module):
    """Of a language model of `transformers`, the logits of the word behind a sentence: [N, length] → [N, words]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(input_ids=x).logits[:, -1]


def gpt2(width: int, *, words: int, length: int, attention: str) -> nn.Module:
    """GPT-2 of `transformers`: two layers of four heads, without dropout; `attention` is "eager" or "sdpa"."""
    package = importlib.import_module("transformers")
    config = package.GPT2Config(
        n_embd=width, n_layer=2, n_head=4, vocab_size=words, n_positions=length, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, use_cache=False, attn_implementation=attention, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return package.GPT2LMHeadModel(config)


def with_lora(network: nn.Module, modules: list[str], kind: str) -> nn.Module:
    """The network frozen, with trainable adapters of `peft` of rank 4 (Hu et al. 2022), none of them zero."""
    package = importlib.import_module("peft")
    options = {"fan_in_fan_out": True} if kind == "CAUSAL_LM" else {}  # GPT-2's weights are transposed
    config = package.LoraConfig(r=4, lora_alpha=8, target_modules=modules, lora_dropout=0.0, task_type=kind, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # peft asks, transformers renamed it
        adapted = package.get_peft_model(network, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero at first, and then half of the gradients are too
            nn.init.normal_(parameter, std=0.1)
    return adapted


def lora_gpt2(width: int) -> nn.Module:
    """Adapters on the attention of GPT-2, whose plain form every peer can differentiate twice."""
    return NextWord(with_lora(gpt2(width, words=100, length=16, attention="eager"), ["c_attn"], "CAUSAL_LM"))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "sinusoid-mlp": sinusoid_mlp,
    "conv4-omniglot-5": lambda channels: conv4(in_channels=1, channels=channels, image=28, ways=5),
    "conv4-omniglot-20": lambda channels: conv4(in_channels=1, channels=channels, image=28, ways=20),
    "conv4-mini": lambda channels: conv4(in_channels=3, channels=channels, image=84, ways=5),
    "conv3-torchbench": conv3,
    "siren": lambda width: siren(width=width),  # 2-width-width-width-3 with sin(30 x) (Sitzmann et al. 2020)
    "mobilenet": lambda channels: mobilenet(channels, ways=5),
    "lora-gpt2": lora_gpt2,
}
"""Builds a network of a width (hidden units or filters) in float32, under the caller's random state."""


def build(network: str, width: int, seed: int) -> nn.Module:
    """A network with the weights that `seed` gives; the caller's random state stays as it is."""
    return seeded(lambda: NETWORKS[network](width), seed)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What `make` gives under this seed; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
