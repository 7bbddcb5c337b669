"""Settings of a run and the published presets."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from training import same

from fastmeta.train.build import make_algorithm, make_family, make_model
from fastmeta.train.config import Execution, RunConfig, from_flat
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
        ({"algorithm": "leo"}, "algorithm must be one of maml, fomaml, reptile, got 'leo'"),
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


def test_settings_are_named_once():
    names = list(RunConfig().flat())
    assert len(names) == len(set(names))
    assert set(names) == RunConfig().settings().keys() | asdict(TrainConfig()).keys()
