"""What every task family of the registry owes the commands: a new one inherits these tests."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from omniglot_files import background, write_zip

from fastmeta.tasks import Images, as_text, load_omniglot, partition
from fastmeta.tasks.cactus import Clustered
from fastmeta.train.build import fitted, make_algorithm, make_family, make_model
from fastmeta.train.cli import TASKS
from fastmeta.train.config import Execution, from_flat
from fastmeta.train.families.registry import FAMILIES
from fastmeta.train.pipeline import Pipeline
from fastmeta.train.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = {
    "channels": 4,
    "width": 8,
    "latent": 3,
    "ways": 3,
    "shots": 2,
    "queries": 2,
    "inner_steps": 1,
    "clusters": 20,
    "depth": 2,
}


def small(name: str):
    """The family's preset, as small as its settings allow."""
    config = PRESETS[name].config
    return config.replace({setting: value for setting, value in SMALL.items() if setting in config.flat()})


def data_of(name: str, tmp_path):
    """What the family makes up without data, or a stand-in for what it reads."""
    config = small(name)
    family = config.family
    if name == "omniglot":
        return load_omniglot([write_zip(tmp_path / "small.zip", background({"Greek": 4, "Latin": 4}))])
    if name == "ssl-text":
        return as_text("what is past is prologue, " * 400)
    if name == "mixed":
        parts = {"a.zip": "Greek", "b.zip": "Latin"}
        paths = [write_zip(tmp_path / path, background({alphabet: 6})) for path, alphabet in parts.items()]
        return family.load(config.tasks, [str(path) for path in paths])
    source = family.load(config.tasks, ())
    if family.clustered:
        images = family.training_images(config.tasks, source)
        return Clustered(source, partition(images.pixels.flatten(1)[:, ::9], clusters=20, partitions=1))
    return source


@pytest.mark.parametrize("name", FAMILIES)
def test_the_example_has_the_shapes_of_training(name, tmp_path):
    """`explain` runs on it; and a meta-step on episodes of the family is finite."""
    source = data_of(name, tmp_path)
    config = fitted(small(name), source)
    drawn = make_family(config, source, CPU).sample(2, torch.Generator().manual_seed(0))
    example = config.family.example(config.tasks, CPU)
    assert [(x.shape, x.dtype) for x in example] == [(x.shape, x.dtype) for x in drawn]
    learner = make_algorithm(config, make_model(config), Execution())
    assert learner(*drawn).loss.isfinite()
    assert learner(*example).loss.isfinite()


@pytest.mark.parametrize("name", FAMILIES)
def test_tests_are_tasks_of_the_same_kind(name, tmp_path):
    source = data_of(name, tmp_path)
    config = fitted(small(name), source)
    drawn = make_family(config, source, CPU).sample(2, torch.Generator().manual_seed(0))
    tests = config.family.tests(config.tasks, source, CPU)
    assert tests
    for family in tests.values():
        scored = family.sample(2, torch.Generator().manual_seed(0))
        assert scored.query_x.shape[2:] == drawn.query_x.shape[2:]
    if config.family.data:
        assert config.family.describe(source) == source.describe()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_usual_shape_fits_the_network(name):
    config = small(name)
    config = config.replace({"shape": config.family.usual_shape(config.tasks)})
    learner = make_algorithm(config, make_model(config), Execution())
    assert learner(*config.family.example(config.tasks, CPU)).loss.isfinite()


@pytest.mark.parametrize("name", FAMILIES)
def test_data_of_another_family_are_refused(name, tmp_path):
    other = as_text("words") if name != "ssl-text" else Images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), None)
    with pytest.raises(TypeError, match=rf"task {name} takes .* as its source, got {type(other).__name__}"):
        Pipeline(PRESETS[name].config, other, folder=tmp_path)


def test_a_setting_means_the_same_in_every_family():
    """It is one option of the command line."""
    meanings = {}
    for settings in TASKS:
        for spec in fields(settings):
            meanings.setdefault(spec.name, set()).add((str(spec.type), str(spec.metadata)))
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}
    assert all("help" in spec.metadata or spec.metadata["flag"] is False for kind in TASKS for spec in fields(kind))


def test_settings_of_a_family_are_its_own():
    for name, family in FAMILIES.items():
        assert (family.name, type(PRESETS[name].config.tasks)) == (name, family.settings_type)
    assert "window" not in PRESETS["umtra"].config.flat()
    with pytest.raises(ValueError, match="window is no setting of task umtra, whose settings are task, model, shots"):
        PRESETS["umtra"].config.replace({"window": 4})


def test_another_task_takes_what_the_two_share():
    changed = PRESETS["glyphs"].config.replace({"task": "umtra", "augment": 1.0})
    assert changed == from_flat({**PRESETS["umtra"].config.flat()})
