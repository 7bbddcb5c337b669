"""Predicting masked characters; a task is a passage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from fastmeta.tasks import Episodes, MaskedText, TaskFamily, Text, load_text

from .base import Family, PresetSettings
from .held_out import check_left
from .settings import HeldOut, Width, network

_ENGLISH = 66
"""Symbols of usual English text, for a network without data."""


@dataclass(frozen=True, kw_only=True)
class TextSettings(Width, HeldOut):
    """Settings of `ssl-text`.

    Attributes:
        vocabulary: characters that the network knows; None until the data are known.
    """

    task: ClassVar[str] = "ssl-text"
    models: ClassVar[tuple[str, ...]] = ("transformer",)

    model: str = network("transformer")
    length: int = field(default=32, metadata={"help": "characters of a window of text"})
    passage: int = field(default=1000, metadata={"help": "characters of a passage, a task"})
    masked: float = field(default=0.15, metadata={"help": "share of a window's characters that is hidden"})
    vocabulary: str | None = field(default=None, metadata={"flag": False, "automatic": True})


class TextFamily(Family[TextSettings, Text]):
    """Passages of a text."""

    def load(self, settings: TextSettings, paths: Sequence[str]) -> Text:
        """The text, in the characters that the network knows."""
        if not paths:
            raise ValueError("task ssl-text needs text: name UTF-8 files or folders with --data")
        return load_text(paths, vocabulary=settings.vocabulary)

    def shape(self, settings: TextSettings, source: Text) -> tuple[int, ...]:
        """(symbols, length)."""
        return source.symbols, settings.length

    def fit(self, settings: TextSettings, source: Text) -> TextSettings:
        """With the text's characters."""
        return replace(settings, shape=self.shape(settings, source), vocabulary=source.vocabulary)

    def usual_shape(self, settings: TextSettings) -> tuple[int, ...]:
        """Of English text."""
        return _ENGLISH, settings.length

    def train(self, settings: TextSettings, source: Text, device: torch.device) -> MaskedText:
        """The beginning of the text."""
        self._check(settings, source)
        return self._masked(settings, source.split(settings.held_out)[0] if settings.held_out else source, device)

    def pretrain(self, settings: TextSettings, source: Text, device: torch.device) -> MaskedText:
        """The same: tasks share what their targets mean."""
        return self.train(settings, source, device)

    def tests(self, settings: TextSettings, source: Text, device: torch.device) -> dict[str, TaskFamily]:
        """The end of the text."""
        self._check(settings, source)
        unseen = source.split(settings.held_out)[1] if settings.held_out else source
        return {"unseen passages": self._masked(settings, unseen, device)}

    def example(self, settings: TextSettings, device: torch.device) -> Episodes:
        """Random characters."""
        symbols, length = settings.shape
        n, samples = settings.shots, settings.shots + settings.queries
        x, y = (torch.randint(symbols, (2, samples, length), device=device) for _ in range(2))
        return Episodes(x[:, :n], y[:, :n], x[:, n:], y[:, n:])

    @staticmethod
    def _check(settings: TextSettings, source: Text) -> None:
        def counts(held_out: float) -> tuple[int, int]:
            first, last = source.split(held_out)
            return len(first.tokens), len(last.tokens)

        passage = settings.passage
        check_left(
            settings.held_out,
            kind="characters",
            counts=counts,
            train=passage,
            test=passage,
            reason="passages",
            remedy="ask for a shorter --passage or give more text",
        )

    @staticmethod
    def _masked(settings: TextSettings, text: Text, device: torch.device) -> MaskedText:
        return MaskedText(
            text,
            length=settings.length,
            passage=settings.passage,
            masked=settings.masked,
            shots=settings.shots,
            queries=settings.queries,
            device=device,
        )


SSL_TEXT = TextFamily(
    settings_type=TextSettings,
    source_type=Text,
    summary="predicting masked characters; a task is a passage",
    data="UTF-8 text files or folders of them",
    data_optional=False,
    presets={
        "ssl-text": PresetSettings(
            {
                "width": 32,
                "shots": 16,
                "queries": 16,
                "algorithm": "fomaml",
                "inner_lr": 0.01,
                "inner_steps": 3,
                "iterations": 400,
                "meta_batch": 4,
                "outer_lr": 2e-3,
                "schedule": "cosine",
                "grad_clip": 10.0,
                "pretrain_iterations": 4_000,
                "from_pretrained": True,
                "eval_steps": 20,
                "episodes": 60,
            },
            "fastmeta's own: meta-training starts from the pre-trained network, which inner steps of 0.03 would spoil.",
        )
    },
)
