"""Settings of a run and the published presets."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from training import same

import fastmeta
from fastmeta.train.build import make_algorithm, make_family, make_model
from fastmeta.train.config import EvaluationConfig, Execution, RunConfig, from_checkpoint, from_flat
from fastmeta.train.presets import PRESETS
from fastmeta.train.run_config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    config = PRESETS[name].config
    if config.tasks.task in {"ssl-series", "ssl-text"}:  # the data decide the network's shape
        config = config.replace({"shape": {"ssl-series": (8, 1, 2), "ssl-text": (20, 32)}[config.tasks.task]})
    model = make_model(config)
    assert make_algorithm(config, model, Execution()).module is model
    assert same(dict(model.state_dict()), dict(make_model(config).state_dict()))
    assert from_flat(config.flat()) == config
    assert PRESETS[name].source.endswith(".")


@pytest.mark.parametrize("name, published, ways", [("maml-5w1s", 0.4, 5), ("maml-20w1s", 0.1, 20)])
def test_learning_rates_are_converted(name, published, ways):
    """The sum over N samples divided by the shots has `ways` times the gradient of the mean."""
    assert PRESETS[name].config.tasks.ways == ways
    assert PRESETS[name].config.algorithm.inner_lr == pytest.approx(published * ways)


def test_published_networks():
    conv4 = make_model(PRESETS["maml-5w1s"].config)
    x = torch.rand(3, 1, 28, 28)
    sizes = [conv4[: 3 * block](x).shape[1:] for block in range(1, 5)]
    assert [tuple(size) for size in sizes] == [(64, 14, 14), (64, 7, 7), (64, 4, 4), (64, 2, 2)]
    pooled = make_model(PRESETS["omniglot"].config.replace({"model": "conv4-pooled", "ways": 7}))
    sizes = [pooled[: 4 * block](x).shape[2] for block in range(1, 5)]
    assert sizes == [14, 7, 3, 1]
    assert pooled(x).shape == (3, 7)
    assert not list(conv4.buffers()), "batch norm tracks no statistics"
    assert sum(p.numel() for p in make_model(PRESETS["sinusoid"].config).parameters()) == 1761


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "conv4"}, "model conv4 does not fit task sinusoid"),
        ({"task": "chess"}, "task must be one of sinusoid, omniglot, glyphs, .*got 'chess'"),
        ({"algorithm": "leo"}, "algorithm must be one of maml, .*, got 'leo'"),
        ({"bn_statistics": "running"}, "bn_statistics must be one of batch, support, got 'running'"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        RunConfig().replace(changes)


def test_evaluation_takes_the_whole_support_set():
    config = PRESETS["reptile-5w1s"].config
    model = make_model(config)
    assert make_algorithm(config, model, Execution()).inner_batch_size == 10
    assert make_algorithm(config, model, Execution(), evaluation=True).inner_batch_size is None


def test_execution_reaches_the_learner():
    config = PRESETS["sinusoid"].config
    execution = Execution(compile=True, cuda_graph=True, memory="recompute", task_chunk=3)
    learner = make_algorithm(config, make_model(config), execution)
    assert learner.compile_step
    assert learner.cuda_graph
    assert (learner.memory, learner.task_chunk) == ("recompute", 3)


def test_omniglot_needs_data():
    with pytest.raises(ValueError, match="task omniglot needs data: name with --data Omniglot's zip files"):
        make_family(PRESETS["omniglot"].config, None, torch.device("cpu"))


def test_unknown_device():
    with pytest.raises(ValueError, match="device 'abacus' cannot be used"):
        Execution(device="abacus").torch_device()


OLD = {
    "channels": 64, "width": 64, "latent": 16, "zero_head": False, "ways": 5, "shots": 10, "train_shots": 0,
    "queries": 10, "within_alphabet": False, "rotations": False, "mirrored": False, "augment": 0.0,
    "augment_classes": 0.0, "alphabets": (), "exclude_alphabets": (), "image_size": 0, "held_out": 0.2, "clusters": 0,
    "partitions": 10, "embedding": "", "pretexts": ("patches", "tiles", "zoom"), "new_pretext": "rotation", "window": 8,
    "horizon": 1, "group": "character", "length": 32, "passage": 1000, "masked": 0.15, "shape": (), "vocabulary": "",
    "algorithm": "maml", "inner_optimizer": "sgd", "inner_lr": 0.01, "inner_momentum": 0.0, "inner_steps": 1,
    "inner_batch_size": 0, "bn_statistics": "batch", "precision": "float32", "iterations": 1000, "meta_batch": 25,
    "outer_optimizer": "adam", "outer_lr": 1e-3, "schedule": "constant", "grad_clip": 0.0, "seed": 0,
    "pretrain_iterations": 0, "from_pretrained": False, "eval_steps": 0, "episodes": 600,
}  # fmt: skip
"""Settings as checkpoints of older versions have them: all families in one, 0 for what is automatic."""
OLD_ALGORITHMS = ("maml", "fomaml", "reptile")


def _is_old(config: RunConfig) -> bool:
    """Whether an older version could have written it: no split of the data, which came later."""
    return config.algorithm.algorithm in OLD_ALGORITHMS and config.flat().get("split") is None


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if _is_old(p.config)])
def test_settings_of_old_checkpoints(name):
    """They are the same run, momentum of Adam included, and their automatic settings are None."""
    config = PRESETS[name].config
    old = OLD | {setting: value for setting, value in config.flat().items() if value is not None}
    if config.algorithm.inner_optimizer == "adam":
        old["inner_momentum"] = config.algorithm.inner_beta1
    del old["inner_beta1"], old["first_order"]
    assert old.keys() == OLD.keys() | {"task", "model"}
    assert from_checkpoint(old) == config


def test_zero_is_automatic_by_name():
    """As the command line has it; in Python it is None."""
    config = PRESETS["reptile-5w1s"].config.replace({"train_shots": 0, "inner_batch_size": 0, "eval_steps": 0})
    assert (config.tasks.train_shots, config.tasks.training_shots) == (None, 1)
    assert (config.algorithm.inner_batch_size, config.eval_steps) == (None, 5)
    with pytest.raises(ValueError, match="eval_steps must be an integer of at least 1, got 0"):
        EvaluationConfig(eval_steps=0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"inner_optimizer": "adam"}, r"inner_momentum is SGD's and has no meaning for inner_optimizer adam, got 0\.9; "
         r"set it to 0 \(--inner-momentum 0\), and inner_beta1 \(--inner-beta1\) where that was meant"),
        ({"inner_beta1": 0.5}, "inner_beta1 is Adam's and has no meaning for inner_optimizer sgd, got 0.5"),
    ],
)  # fmt: skip
def test_momentum_is_not_adam_s(changes, message):
    config = PRESETS["cluster"].config
    with pytest.raises(ValueError, match=message):
        config.replace(changes)
    adam = config.replace({"inner_optimizer": "adam", "inner_momentum": 0.0, "inner_beta1": 0.9, "channels": 2})
    learner = make_algorithm(adam.replace({"shape": (1, 28, 28)}), make_model(adam), Execution())
    assert learner.inner_optimizer == fastmeta.Adam(lr=1.0, betas=(0.9, 0.999))


def test_settings_are_named_once():
    names = list(RunConfig().flat())
    assert len(names) == len(set(names))
    assert set(names) == RunConfig().settings().keys() | asdict(TrainConfig()).keys()
