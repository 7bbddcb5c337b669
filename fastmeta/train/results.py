"""What the commands print and draw of a run: its description, its scores, and comparisons of starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastmeta.tasks import Images
from fastmeta.tasks.cross_domain import difference, matched

from .build import make_algorithm, make_model
from .config import Execution, RunConfig
from .cross_domain import episodes_of
from .families.base import Source
from .pipeline import Pipeline
from .scores.clusters import pixel_clusters
from .scores.compare import Comparison, write_json
from .scores.evaluate import Estimate, draw, evaluate, evaluate_episodes
from .scores.plots import plot_codes, plot_curves


def describe(config: RunConfig, source: Source | None) -> str:
    """Data, tasks and adaptation in two lines."""
    tasks, adaptation = config.tasks, config.algorithm
    steps = f"{adaptation.inner_steps} inner step(s) of {adaptation.inner_optimizer} {adaptation.inner_lr:g}, "
    return (
        f"{config.family.describe(source)}\n{adaptation.algorithm}, {tasks.size}, {tasks.model}, "
        f"{steps if config.method.inner_loop else ''}{config.train.meta_batch} tasks a meta-step"
    )


def show_results(pipeline: Pipeline, *, steps: Sequence[int] | None, seed: int, picture: str = "curves") -> None:
    """Print how well a finished run does on new tasks, and draw it in the run's folder.

    Args:
        pipeline: the run.
        steps: inner steps to score; None: the run's.
        seed: of the episodes.
        picture: name of the files, without ending.
    """
    evaluation = pipeline.config.family.evaluation
    if evaluation == "trained network":
        _show_scores(pipeline, seed)
        return
    comparisons = pipeline.compare(steps=steps, seed=seed)
    for comparison in comparisons:
        print(comparison.headline())
        print(comparison.table())
    if evaluation == "clusters":
        _show_clusters(pipeline, comparisons, seed, picture)
    write_json(comparisons, pipeline.folder / f"{picture}.json")
    path = pipeline.folder / f"{picture}.png"
    _draw(path, lambda: plot_curves(comparisons, path))


def _show_clusters(pipeline: Pipeline, comparisons: Sequence[Comparison], seed: int, picture: str) -> None:
    """Beside k-means on pixels, and the codes of one task in a picture."""
    family = pipeline.labelled_sets()
    for measure, estimate in pixel_clusters(family, episodes=pipeline.config.evaluation.episodes, seed=seed).items():
        print(f"k-means on the pixels: {measure} {estimate.percent()}")
    rates = {start: curve.inner_lr for start, curve in comparisons[0].curves.items()}
    learners = {start: pipeline.learner(start, model, rates[start]) for start, model in pipeline.starts().items()}
    _, _, x, y = next(iter(draw(family, episodes=1, meta_batch=1, seed=seed)))
    known = y[0] < family.ways - 1
    path = pipeline.folder / f"{picture}-codes.png"
    _draw(path, lambda: plot_codes(learners, x[0, known], y[0, known], path, steps=pipeline.config.eval_steps))


def _show_scores(pipeline: Pipeline, seed: int) -> None:
    """Of the trained network alone, and what its family draws of it."""
    config = pipeline.config
    if config.flat().get("split") is not None:
        _show_protocol(pipeline, seed)
        return
    learner = make_algorithm(config, make_model(config).to(pipeline.device), pipeline.execution, evaluation=True)
    learner.load_state_dict(pipeline.trained()["algorithm"])
    for title, family in config.family.tests(config.tasks, pipeline.source, pipeline.device).items():
        scores = evaluate(
            learner, family, steps=config.steps_to_score, episodes=config.evaluation.episodes, seed=seed,
            measure=config.family.score, worst=config.family.worst,
        )  # fmt: skip
        print(f"{config.family.metric} over {config.evaluation.episodes} {title}, 95 % confidence:")
        print_scores(config, scores)
        if config.family.picture:
            path = pipeline.folder / config.family.picture
            _draw(
                path,
                partial(config.family.draw, learner, family, path, [step for step in config.steps_to_score if step]),
            )


def _show_protocol(pipeline: Pipeline, seed: int) -> None:
    """Of a published split, as papers report it: transductive (statistics of the query batch) and inductive."""
    config, state = pipeline.config, pipeline.trained()["algorithm"]
    tests = config.family.tests(config.tasks, pipeline.source, pipeline.device)
    names = {"batch": "transductive", "support": "inductive"}
    for title, family in tests.items():
        print(f"{config.family.metric} over {config.evaluation.episodes} {title}, 95 % confidence:")
        for choice in config.bn_statistics:
            model = make_model(config).to(pipeline.device)
            learner = make_algorithm(config, model, pipeline.execution, evaluation=True, bn_statistics=choice)
            learner.load_state_dict(state)
            scores = evaluate(
                learner, family, steps=config.steps_to_score, episodes=config.evaluation.episodes, seed=seed,
                measure=config.family.score, worst=config.family.worst,
            )  # fmt: skip
            print_scores(config, scores, prefix=f"  {names[choice]:<13}" if len(config.bn_statistics) > 1 else "  ")


def show_cross_domain(
    config: RunConfig, images: Images, state: dict[str, Any], execution: Execution, *, steps: Sequence[int],
    statistics: Sequence[Literal["batch", "support"]], seed: int,
) -> None:  # fmt: skip
    """Print how the trained network does on other images, and the same network from scratch.

    Args:
        config: the run that the checkpoint is of.
        images: as `other_images` gives them.
        state: the checkpoint.
        steps: inner steps to score.
        statistics: settings of `bn_statistics` to score.
        seed: of the episodes, the same for all.
    """
    channels, height, width = config.tasks.shape or (1, 28, 28)
    changed = difference(images, (channels, height, width))
    device = execution.torch_device()
    tasks = episodes_of(config, matched(images, (channels, height, width)), device)
    print(images.describe() + (f"; for the network: {changed}" if changed else ""))
    print(f"{config.algorithm.algorithm}, trained on task {config.tasks.task}: {config.tasks.size}")
    print(f"{config.family.metric} over {config.evaluation.episodes} episodes of the other data, 95 % confidence")
    fresh = config.replace({"seed": config.train.seed + 1})
    for start, run in (("meta-learned", config), ("from scratch", fresh)):
        model = make_model(run).to(device)
        for choice in statistics:
            algorithm = make_algorithm(run, model, execution, evaluation=True, bn_statistics=choice)
            if run is config:
                algorithm.load_state_dict(state["algorithm"])
            drawn = partial(draw, tasks, episodes=config.evaluation.episodes, meta_batch=25, seed=seed)
            scores = evaluate_episodes(algorithm, drawn(), steps=steps, measure=config.family.score)
            named = f"bn_statistics={choice:<8} " if len(config.bn_statistics) > 1 else ""
            print_scores(config, scores, prefix=f"  {start:<13} {named}")


def print_scores(config: RunConfig, scores: dict[int, Estimate], *, prefix: str = "  ") -> None:
    """One line a number of inner steps."""
    for steps, estimate in scores.items():
        before = "before adaptation" if config.method.inner_loop else "without inner steps"
        when = before if steps == 0 else f"after {steps} inner step{'s' if steps > 1 else ''}"
        print(f"{prefix}{when:<21} {estimate.percent() if config.family.percent else estimate}")


def _draw(path: Path, draw: Callable[[], None]) -> None:
    """The picture is no reason to fail after a training run."""
    try:
        draw()
    except RuntimeError as error:
        print(f"no picture: {error}")
    else:
        print(f"picture: {path}")
