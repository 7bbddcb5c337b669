"""The LSTM meta-learner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fastmeta.algorithms.lstm import LSTMMetaLearner
from fastmeta.train.families.base import PresetSettings

from .base import Learned, Method


@dataclass(frozen=True, kw_only=True)
class LSTMSettings(Learned):
    """Settings of `lstm`."""

    hidden: int = field(default=20, metadata={"help": "width of the LSTM that makes the gates"})
    gates: Literal["preactivation", "activation"] = field(
        default="preactivation",
        metadata={"help": "what is fed back of the gates", "choices": ("preactivation", "activation")},
    )


LSTM = Method(
    kind=LSTMMetaLearner,
    settings_type=LSTMSettings,
    make=lambda model, own, common: LSTMMetaLearner(model, hidden=own.hidden, gates=own.gates, **common.options),
    presets={
        "omniglot": PresetSettings(
            {"inner_steps": 5, "eval_steps": 5, "grad_clip": 0.25, "meta_batch": 2},
            "Ravi & Larochelle 2017, the authors' code: 20 hidden units, Adam of 1e-3, gradients clipped at 0.25; "
            "there one task a meta-step.",
        ),
        "sinusoid": PresetSettings(
            {"inner_steps": 5, "eval_steps": 5, "grad_clip": 0.25}, "fastmeta's own: five steps, clipped as above."
        ),
    },
)
