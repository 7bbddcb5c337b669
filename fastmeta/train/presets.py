"""Settings of published experiments, each with its source.

cbfinn/maml sums the loss over a task's N samples and divides by the number of shots, so that its gradient is
`ways` times the one of a mean; fastmeta, like PyTorch, takes the mean. Its inner learning rate is therefore
multiplied by the number of ways here: 0.4 becomes 2.0 for 5 ways, and 0.1 becomes 2.0 for 20.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastmeta.train.families.settings import TaskConfig

from .config import AlgorithmConfig, EvaluationConfig, PretrainConfig, RunConfig
from .run_config import TrainConfig


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

_FEW_SHOT = {"model": "conv4", "channels": 32, "zero_head": True, "ways": 5, "shots": 1, "queries": 5}

_GLYPHS = RunConfig(
    tasks=TaskConfig(task="glyphs", **_FEW_SHOT),
    algorithm=AlgorithmConfig(inner_lr=0.4, inner_steps=1),
    train=TrainConfig(iterations=3_000, meta_batch=4, schedule="cosine"),
    evaluation=EvaluationConfig(eval_steps=5, episodes=200),
)

_UMTRA = _GLYPHS.replace({"task": "umtra", "augment": 1.0})

_CACTUS = _GLYPHS.replace({"task": "cactus", "augment": 0.5})

_CLUSTER = RunConfig(
    tasks=TaskConfig(task="cluster", model="autoencoder", channels=8, ways=5, shots=10, queries=10),
    algorithm=AlgorithmConfig(inner_lr=1.0, inner_momentum=0.9, inner_steps=5),
    train=TrainConfig(iterations=300, meta_batch=4, schedule="cosine", grad_clip=10.0),
    pretraining=PretrainConfig(pretrain_iterations=3_000, from_pretrained=True),
    evaluation=EvaluationConfig(eval_steps=20, episodes=40),
)

_SSL_IMAGES = RunConfig(
    tasks=TaskConfig(
        task="ssl-images", model="resnet18", channels=8, zero_head=True, ways=4, shots=5, queries=5, augment=0.5
    ),
    algorithm=AlgorithmConfig(inner_lr=0.4, inner_steps=1),
    train=TrainConfig(iterations=600, meta_batch=4, schedule="cosine", grad_clip=10.0),
    pretraining=PretrainConfig(pretrain_iterations=1_000, from_pretrained=True),
    evaluation=EvaluationConfig(eval_steps=20, episodes=40),
)

_SSL_IMAGES_REPTILE = _SSL_IMAGES.replace(
    {
        "channels": 64,
        "queries": 1,
        "algorithm": "reptile",
        "inner_optimizer": "adam",
        "inner_lr": 1e-3,
        "inner_momentum": 0.9,
        "inner_steps": 5,
        "train_shots": 16,
        "inner_batch_size": 32,
        "meta_batch": 32,
        "grad_clip": 0.0,
        "iterations": 10_000,
        "pretrain_iterations": 20_000,
        "episodes": 600,
    }
)

_SSL_SERIES = RunConfig(
    tasks=TaskConfig(task="ssl-series", model="forecast-mlp", shots=20, queries=20),
    algorithm=AlgorithmConfig(inner_lr=0.05, inner_steps=5),
    train=TrainConfig(iterations=5_000, meta_batch=16, schedule="cosine", grad_clip=10.0),
    pretraining=PretrainConfig(pretrain_iterations=30_000),
    evaluation=EvaluationConfig(eval_steps=20, episodes=400),
)

_SSL_TEXT = RunConfig(
    tasks=TaskConfig(task="ssl-text", model="transformer", width=32, shots=16, queries=16),
    algorithm=AlgorithmConfig(algorithm="fomaml", inner_lr=0.01, inner_steps=3),
    train=TrainConfig(iterations=400, meta_batch=4, outer_lr=2e-3, schedule="cosine", grad_clip=10.0),
    pretraining=PretrainConfig(pretrain_iterations=4_000, from_pretrained=True),
    evaluation=EvaluationConfig(eval_steps=20, episodes=60),
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
    "glyphs": Preset(_GLYPHS, "fastmeta's own: few-shot learning without any data."),
    "umtra": Preset(
        _UMTRA,
        "fastmeta's own, after Khodadadeh et al. 2019: one inner step in training, on fewer filters and iterations.",
    ),
    "cactus": Preset(
        _CACTUS,
        "fastmeta's own, after Hsu et al. 2019: ten partitions there are fifty; codes of a plain autoencoder where "
        "the paper takes ACAI, BiGAN or DeepCluster.",
    ),
    "cluster": Preset(
        _CLUSTER,
        "fastmeta's own: meta-training starts from the pre-trained network. Inner Adam is no choice here: its exact "
        "meta-gradient passes through the sign of the first step, and the loss rose.",
    ),
    "ssl-images": Preset(
        _SSL_IMAGES,
        "fastmeta's own: pre-training on one pretext, MAML on several; ResNet-18 with an eighth of its filters.",
    ),
    "ssl-images-reptile": Preset(
        _SSL_IMAGES_REPTILE,
        "fastmeta's own, for a GPU: the whole ResNet-18, Reptile with five steps of Adam, 32 tasks a meta-step; not "
        "measured.",
    ),
    "ssl-series": Preset(
        _SSL_SERIES, "fastmeta's own: pre-training takes as many gradients as the inner and outer steps together."
    ),
    "ssl-text": Preset(
        _SSL_TEXT,
        "fastmeta's own: meta-training starts from the pre-trained network, which inner steps of 0.03 would spoil.",
    ),
}
"""By name. Those named as a task family are what `fastmeta train` starts from."""
