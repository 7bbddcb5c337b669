"""Runs of several stages, called from a script: stopped anywhere, they end in the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training import same

import fastmeta
from fastmeta.tasks import as_series
from fastmeta.train.build import fitted, make_model
from fastmeta.train.checkpoint import load_checkpoint, save_checkpoint
from fastmeta.train.families.registry import FAMILIES
from fastmeta.train.methods.maml import plain
from fastmeta.train.methods.registry import METHODS
from fastmeta.train.pipeline import Pipeline, prepare
from fastmeta.train.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "width": 4,
    "shots": 3,
    "queries": 3,
    "iterations": 6,
    "pretrain_iterations": 5,
    "meta_batch": 2,
    "episodes": 3,
}


def series(folder, *, time_limit=None, say=lambda line: None, **changes) -> Pipeline:
    config, source = prepare(PRESETS["ssl-series"].config.replace(SMALL | changes))
    return Pipeline(config, source, folder=folder, time_limit=time_limit, say=say)


def test_stages_in_order(tmp_path):
    lines = []
    pipeline = series(tmp_path, say=lines.append)
    assert pipeline.train().reason == "finished"
    assert [line.split(",")[0] for line in lines] == ["plain pre-training", "on cpu", "maml"]
    assert load_checkpoint(tmp_path / "pretrained/checkpoint.pt")["iteration"] == 5
    assert load_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 6
    assert list(pipeline.starts()) == ["from scratch", "pre-trained", "meta-learned"]


def test_stopped_between_and_within_stages(tmp_path):
    whole = series(tmp_path / "whole")
    whole.train()
    cut = tmp_path / "cut"
    stopped = series(cut, time_limit=1e-9).train()
    assert stopped.reason == "time limit"
    assert not (cut / "checkpoint.pt").exists(), "the first stage took all the time"
    series(cut).pretrainer().run()
    assert series(cut, time_limit=1e-9).train().reason == "time limit"
    assert series(cut).train().reason == "finished"
    for name in ("checkpoint.pt", "pretrained/checkpoint.pt"):
        assert same(load_checkpoint(whole.folder / name), load_checkpoint(cut / name)), name


def test_meta_training_from_the_pretrained_network(tmp_path):
    pipeline = series(tmp_path, from_pretrained=True, iterations=0)
    pipeline.train()
    starts = pipeline.starts()
    for key, value in starts["pre-trained"].state_dict().items():
        assert torch.equal(value, starts["meta-learned"].state_dict()[key])
        assert key.endswith("bias") or not torch.equal(value, starts["from scratch"].state_dict()[key])


def test_a_new_linear_predictor_for_new_tasks(tmp_path):
    changes = {"channels": 2, "ways": 4, "shots": 1, "queries": 1, "iterations": 1, "pretrain_iterations": 2}
    config, source = prepare(PRESETS["ssl-images"].config.replace(changes | {"meta_batch": 1}))
    pipeline = Pipeline(config, source, folder=tmp_path)
    pipeline.train()
    trained = load_checkpoint(tmp_path / "pretrained/checkpoint.pt")["model"]
    head, start = list(trained)[-2], pipeline.starts()["pre-trained"].state_dict()
    assert trained[head].abs().max() > 0
    assert (start[head] == 0).all()
    assert torch.equal(start["0.weight"], trained["0.weight"])


def test_an_autoencoder_is_pretrained_on_reconstruction_alone(tmp_path):
    changes = {"channels": 2, "latent": 3, "ways": 2, "shots": 2, "queries": 2, "iterations": 1, "meta_batch": 1}
    config, source = prepare(PRESETS["cluster"].config.replace(changes | {"pretrain_iterations": 2}))
    pipeline = Pipeline(config, source, folder=tmp_path)
    pipeline.train()
    first, pretrained = make_model(config).state_dict(), pipeline.starts()["pre-trained"].state_dict()
    learned = pipeline.starts()["meta-learned"].state_dict()
    assert torch.equal(pretrained["centres"], first["centres"])
    assert not torch.equal(pretrained["encoder.0.weight"], first["encoder.0.weight"])
    assert not torch.equal(learned["centres"], first["centres"])


def test_data_of_a_script_s_own(tmp_path):
    source = as_series([torch.arange(60.0).sin() * (g + 1) for g in range(8)])
    config = fitted(PRESETS["ssl-series"].config.replace(SMALL | {"pretrain_iterations": 0, "window": 4}), source)
    pipeline = Pipeline(config, source, folder=tmp_path)
    pipeline.train()
    (comparison,) = pipeline.compare(steps=(0, 2))
    assert comparison.title == "unseen groups"
    assert list(comparison.curves) == ["from scratch", "meta-learned"]
    assert comparison == pipeline.compare(steps=(0, 2))[0]


class LearnedRate(fastmeta.MAML):
    """MAML whose step size is a parameter of its own; here nothing trains it."""

    def __init__(self, model, **options) -> None:
        super().__init__(model, **options)
        self.rate = nn.Parameter(torch.tensor(0.0))

    def adapt(self, support_x, support_y, *, steps=None):
        self.inner_optimizer = fastmeta.SGD(lr=self.rate.item())
        return super().adapt(support_x, support_y, steps=steps)


def test_scores_are_those_of_all_that_the_algorithm_learned(tmp_path, monkeypatch):
    """The meta-learned start moves at the rate of the checkpoint, another one at the rate of a new algorithm."""
    monkeypatch.setitem(METHODS, "maml", plain(LearnedRate, {}))
    pipeline = series(tmp_path, iterations=1)
    pipeline.train()
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    state["algorithm"]["rate"].fill_(0.05)
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    (comparison,) = pipeline.compare(steps=(0, 2))
    before, after = comparison.curves["meta-learned"].scores.values()
    assert before != after
    before, after = comparison.curves["from scratch"].scores.values()
    assert before == after


def test_what_cannot_be_pretrained(tmp_path):
    config, source = prepare(PRESETS["glyphs"].config.replace({"pretrain_iterations": 1}))
    with pytest.raises(ValueError, match="task glyphs has no plain pre-training: its tasks number their classes anew"):
        Pipeline(config, source, folder=tmp_path).train()
    with pytest.raises(ValueError, match="from_pretrained needs pre-training"):
        PRESETS["glyphs"].config.replace({"from_pretrained": True})


def test_every_family_has_a_preset_and_names_real_settings():
    for name, family in FAMILIES.items():
        config = PRESETS[name].config
        assert config.tasks.task == name
        assert family.settings <= config.flat().keys()
        assert family.summary
