"""Settings of published experiments, each with its source.

cbfinn/maml sums the loss over a task's N samples and divides by the number of shots, so that its gradient is
`ways` times the one of a mean; fastmeta, like PyTorch, takes the mean. Its inner learning rate is therefore
multiplied by the number of ways here: 0.4 becomes 2.0 for 5 ways, and 0.1 becomes 2.0 for 20.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import AlgorithmConfig, EvaluationConfig, RunConfig, TaskConfig
from .train import TrainConfig


@dataclass(frozen=True)
class Preset:
    """A run and where its settings come from."""

    config: RunConfig
    source: str


_SINUSOID = RunConfig(
    tasks=TaskConfig(shots=10, queries=10),
    algorithm=AlgorithmConfig(inner_lr=0.01, inner_steps=1),
    train=TrainConfig(iterations=10_000, meta_batch=25, outer_lr=1e-3, schedule="cosine"),
    evaluation=EvaluationConfig(eval_steps=10),
)

_OMNIGLOT = RunConfig(
    tasks=TaskConfig(task="omniglot", model="conv4", ways=5, shots=1, queries=5, rotations=True),
    algorithm=AlgorithmConfig(inner_lr=0.4, inner_steps=3),
    train=TrainConfig(iterations=5_000, meta_batch=8, schedule="cosine"),
)

_WITHIN_20W1S = RunConfig(
    tasks=TaskConfig(
        task="omniglot",
        model="conv4-flat",
        zero_head=True,
        ways=20,
        shots=1,
        queries=2,
        within_alphabet=True,
        rotations=True,
        mirrored=True,
        augment=1.0,
        augment_classes=1.0,
    ),
    algorithm=AlgorithmConfig(inner_lr=0.2, inner_steps=3),
    train=TrainConfig(iterations=5_000, meta_batch=8, outer_lr=2e-3, schedule="cosine", grad_clip=10.0),
    evaluation=EvaluationConfig(eval_steps=10),
)

_MAML_5W1S = RunConfig(
    tasks=TaskConfig(task="omniglot", model="conv4", ways=5, shots=1, queries=1, rotations=True),
    algorithm=AlgorithmConfig(inner_lr=2.0, inner_steps=1),
    train=TrainConfig(iterations=60_000, meta_batch=32),
    evaluation=EvaluationConfig(eval_steps=10),
)

_MAML_20W1S = RunConfig(
    tasks=TaskConfig(task="omniglot", model="conv4", ways=20, shots=1, queries=1, rotations=True),
    algorithm=AlgorithmConfig(inner_lr=2.0, inner_steps=5),
    train=TrainConfig(iterations=60_000, meta_batch=16),
    evaluation=EvaluationConfig(eval_steps=10),
)

_REPTILE_5W1S = RunConfig(
    tasks=TaskConfig(task="omniglot", model="conv4", ways=5, shots=1, train_shots=10, queries=1, rotations=True),
    algorithm=AlgorithmConfig(
        algorithm="reptile",
        inner_optimizer="adam",
        inner_lr=1e-3,
        inner_momentum=0.0,
        inner_steps=5,
        inner_batch_size=10,
    ),
    train=TrainConfig(iterations=100_000, meta_batch=5, outer_optimizer="sgd", outer_lr=1.0, schedule="linear"),
    evaluation=EvaluationConfig(eval_steps=50),
)

PRESETS: dict[str, Preset] = {
    "sinusoid": Preset(
        _SINUSOID,
        "Finn, Abbeel, Levine 2017, section 5.1: K = 10, one step of 0.01. The paper trains for 70,000 "
        "iterations at a constant outer step size; here a cosine schedule ends after fewer.",
    ),
    "omniglot": Preset(_OMNIGLOT, "fastmeta's own, for a first look in minutes; no published figure."),
    "within-20w1s": Preset(
        _WITHIN_20W1S,
        "fastmeta's own, for the Omniglot challenge with few alphabets (Lake et al. 2015: 20 ways within an "
        "alphabet): turned and mirrored alphabets, distorted classes and images make up for what is missing. "
        "Settings chosen on Sanskrit, left out of small2.",
    ),
    "maml-5w1s": Preset(
        _MAML_5W1S,
        "cbfinn/maml, main.py: 5 ways, 1 shot, meta-batch 32, 60,000 iterations, one step of 0.4 (2.0 here, "
        "where a loss is a mean), strided convolutions, 10 steps in evaluation.",
    ),
    "maml-20w1s": Preset(
        _MAML_20W1S,
        "cbfinn/maml, main.py: 20 ways, 1 shot, meta-batch 16, 60,000 iterations, five steps of 0.1 (2.0 "
        "here, where a loss is a mean), strided convolutions, 10 steps in evaluation.",
    ),
    "reptile-5w1s": Preset(
        _REPTILE_5W1S,
        "openai/supervised-reptile, README: 10 shots in training, five inner steps of Adam (1e-3, beta1 = 0) "
        "on batches of 10, meta-batch 5, outer step size 1 to 0 over 100,000 iterations, 50 steps in "
        "evaluation. There Adam's second moments run on from task to task, and the head sees the flattened "
        "map; here they start anew in every task, and the head sees its mean.",
    ),
}
"""By name. `sinusoid` and `omniglot` are what `fastmeta train` starts from."""
