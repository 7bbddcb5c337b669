"""Implicit networks of images by command: what is scored, and what is drawn."""

import pytest
import torch

from fastmeta.tasks import Images
from fastmeta.train.build import fitted, make_algorithm, make_family, make_model
from fastmeta.train.config import Execution
from fastmeta.train.pipeline import Pipeline
from fastmeta.train.presets import PRESETS
from fastmeta.train.results import show_results
from fastmeta.train.scores.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"width": 12, "depth": 2, "latent": 4, "iterations": 2, "meta_batch": 3, "episodes": 4}


def run(**changes):
    images = Images(torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8), None)
    return fitted(PRESETS["inr"].config.replace(SMALL | changes), images), images


def test_the_latent_code_alone_is_adapted():
    config, images = run()
    tasks = make_family(config, images, torch.device("cpu"))
    assert tasks.sample(1, torch.Generator()).support_x.shape == (1, 64, 2)  # fewer pixels than the preset's shots
    learner = make_algorithm(config, make_model(config), Execution())
    assert learner.adapt(*tasks.sample(2, torch.Generator())[:2]).parameters()["latent"].shape == (2, 4)


def test_its_score_is_the_psnr():
    family = PRESETS["inr"].config.family
    target = torch.rand(3, 10, 1)
    got = family.score(target + torch.tensor([0.1, 0.01, 1.0]).view(-1, 1, 1), target)
    torch.testing.assert_close(got, torch.tensor([20.0, 40.0, 0.0]), rtol=1e-4, atol=1e-4)
    assert (family.metric, family.percent) == ("PSNR in dB", False)


def test_a_learner_that_diverged_scores_worst():
    config, images = run()
    learner = make_algorithm(config, make_model(config), Execution())
    torch.nn.init.constant_(learner.module.last.bias, torch.nan)
    tasks = make_family(config, images, torch.device("cpu"), evaluation=True)
    found = evaluate(learner, tasks, episodes=3, steps=(3,), measure=config.family.score, worst=config.family.worst)
    assert found[3].diverged == 3
    assert found[3].mean == 0.0


def test_a_run_prints_and_draws(tmp_path, capsys):
    config, images = run()
    pipeline = Pipeline(config, images, folder=tmp_path)
    pipeline.train()
    show_results(pipeline, steps=None, seed=0)
    text = capsys.readouterr().out
    assert "PSNR in dB over 4 unseen images, 95 % confidence:" in text
    for when in ("before adaptation", "after 1 inner step ", "after 3 inner steps", "after 10 inner steps"):
        assert when in text
    assert (tmp_path / "reconstructions.png").stat().st_size > 1000
