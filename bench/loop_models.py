"""What `python -m bench loop` measures: real networks at sizes of a test, with a batch of tasks and a loss.

Weights and data are random and nothing is downloaded. Most networks are of `transformers`, with adapters of `peft`;
both are imported inside, so that one that is missing is a row of the result and no crash.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import gpt2, with_lora
from .workloads import WORKLOADS

TASKS, SUPPORT, QUERY, LENGTH, CLASSES, WORDS = 4, 6, 6, 12, 3, 50


class Case(NamedTuple):
    """A network, the mean loss of one task's samples, and support and query sets [T, N or M, ...]."""

    model: nn.Module
    loss: Callable[[Any, Tensor], Tensor]
    batch: tuple[Tensor, Tensor, Tensor, Tensor]
    lr: float = 0.05


class Logits(nn.Module):
    """A network of `transformers` as a function of one tensor that gives logits."""

    def __init__(self, network: nn.Module, argument: str) -> None:
        super().__init__()
        self.network, self.argument = network, argument

    def forward(self, x: Tensor) -> Tensor:
        return self.network(**{self.argument: x}).logits


def next_word(logits: Tensor, words: Tensor) -> Tensor:
    """Cross entropy of every word but the first, given those before it."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), words[:, 1:].flatten())


def _labels(samples: int) -> Tensor:
    return torch.randint(CLASSES, (TASKS, samples))


def _sentences(samples: int) -> Tensor:
    return torch.randint(1, WORDS, (TASKS, samples, LENGTH))


def _classified(model: nn.Module, make: Callable[[int], Tensor]) -> Case:
    batch = (make(SUPPORT), _labels(SUPPORT), make(QUERY), _labels(QUERY))
    return Case(model, F.cross_entropy, batch)


def _language(model: nn.Module) -> Case:
    support, query = _sentences(SUPPORT), _sentences(QUERY)
    return Case(model, next_word, (support, support, query, query))


def _transformers() -> Any:
    package = importlib.import_module("transformers")
    package.logging.set_verbosity_error()
    return package


_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def _bert_network() -> nn.Module:
    package = _transformers()
    config = package.BertConfig(
        **_SIZE, vocab_size=WORDS, max_position_embeddings=16, num_labels=CLASSES, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return package.BertForSequenceClassification(config)


def _bert() -> Case:
    return _classified(Logits(_bert_network(), "input_ids"), _sentences)


def _bert_lora() -> Case:
    network = with_lora(_bert_network(), ["query", "value"], "SEQ_CLS")
    return _classified(Logits(network, "input_ids"), _sentences)


def _gpt2() -> Case:
    return _language(Logits(gpt2(32, words=WORDS, length=16, attention="sdpa"), "input_ids"))


def _gpt2_lora() -> Case:
    return _language(
        Logits(with_lora(gpt2(32, words=WORDS, length=16, attention="sdpa"), ["c_attn"], "CAUSAL_LM"), "input_ids")
    )


def _llama() -> Case:
    package = _transformers()
    config = package.LlamaConfig(**_SIZE, vocab_size=WORDS, max_position_embeddings=16, use_cache=False)
    return _language(Logits(package.LlamaForCausalLM(config), "input_ids"))


def _pictures(side: int) -> Callable[[int], Tensor]:
    return lambda samples: torch.randn(TASKS, samples, 3, side, side)


def _vit() -> Case:
    package = _transformers()
    config = package.ViTConfig(
        **_SIZE, image_size=32, patch_size=8, num_labels=CLASSES, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return _classified(Logits(package.ViTForImageClassification(config), "pixel_values"), _pictures(32))


def _resnet() -> Case:
    package = _transformers()
    config = package.ResNetConfig(
        num_channels=3, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic",
        num_labels=CLASSES,
    )  # fmt: skip
    return _classified(Logits(package.ResNetForImageClassification(config), "pixel_values"), _pictures(32))


def _mobilenet() -> Case:
    workload = WORKLOADS["mobilenet"].sized_for("cpu")
    return Case(workload.model(), F.cross_entropy, workload.batch(), workload.lr)


class _TwoWays(nn.Module):
    """Nothing in it has an op of its own beside the layers: what a rung below costs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(torch.logcumsumexp(h, -1) + torch.special.i0e(h))


class _Branching(_TwoWays):
    """What it computes depends on its data, so that no plan of it can be made."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h * 2 if bool(h.sum() > 0) else h)


def _vectors(samples: int) -> Tensor:
    return torch.randn(TASKS, samples, 16)


CASES: dict[str, Callable[[], Case]] = {
    "BERT": _bert,
    "GPT-2": _gpt2,
    "LLaMA": _llama,
    "ViT": _vit,
    "ResNet": _resnet,
    "BERT with LoRA": _bert_lora,
    "GPT-2 with LoRA": _gpt2_lora,
    "MobileNetV2": _mobilenet,
    "opaque ops": lambda: _classified(_TwoWays(), _vectors),
    "task by task": lambda: _classified(_Branching(), _vectors),
}
"""Makes a network and its batch under the caller's random state."""
