"""What the commands say about a run: its description, its scores, comparisons of starts, and their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks import Sinusoid
from fastmeta.train.families.builders import Source
from fastmeta.train.scores.clusters import pixel_clusters
from fastmeta.train.scores.compare import Comparison, write_json
from fastmeta.train.scores.evaluate import Estimate, draw, evaluate
from fastmeta.train.scores.plots import plot_codes, plot_curves, plot_sinusoids

from .build import make_algorithm, make_model
from .config import RunConfig
from .pipeline import TEST_SEED, Pipeline


def describe(config: RunConfig, source: Source | None) -> str:
    """Data, tasks and adaptation in two lines."""
    tasks, adaptation = config.tasks, config.algorithm
    what = "sinusoids" if tasks.task == "sinusoid" else config.family.summary if source is None else source.describe()
    ways = f"{tasks.ways}-way " if "ways" in config.family.settings else ""
    within = " within an alphabet" if tasks.within_alphabet else ""
    return (
        f"{what}\n{adaptation.algorithm}, {ways}{tasks.shots}-shot{within}, {tasks.model}, "
        f"{adaptation.inner_steps} inner step(s) of {adaptation.inner_optimizer} {adaptation.inner_lr:g}, "
        f"{config.train.meta_batch} tasks a meta-step"
    )


def metric(config: RunConfig) -> str:
    """What a score is."""
    return "accuracy" if config.family.percent else "mean squared error"


def report(pipeline: Pipeline, *, steps: Sequence[int] | None, seed: int, picture: str | None) -> None:
    """Print how well a finished run does on new tasks, and draw it in the run's folder.

    Args:
        pipeline: the run.
        steps: inner steps to score; None: the run's.
        seed: of the episodes.
        picture: name of the files, without ending; None: "sinusoids" or "curves".
    """
    if pipeline.config.family.report == "scores":
        _report_scores(pipeline, seed)
        return
    name = picture or "curves"
    comparisons = pipeline.compare(steps=steps, seed=seed)
    for comparison in comparisons:
        print(comparison.headline())
        print(comparison.table())
    if pipeline.config.family.report == "clusters":
        _report_clusters(pipeline, comparisons, seed, name)
    write_json(comparisons, pipeline.folder / f"{name}.json")
    path = pipeline.folder / f"{name}.png"
    _draw(path, lambda: plot_curves(comparisons, path))


def _report_clusters(pipeline: Pipeline, comparisons: Sequence[Comparison], seed: int, name: str) -> None:
    """Beside k-means on pixels, and the codes of one task in a picture."""
    family = pipeline.labelled_sets()
    for measure, estimate in pixel_clusters(family, episodes=pipeline.config.evaluation.episodes, seed=seed).items():
        print(f"k-means on the pixels: {measure} {estimate.percent()}")
    rates = {start: curve.inner_lr for start, curve in comparisons[0].curves.items()}
    learners = {
        start: make_algorithm(pipeline.config.replace({"inner_lr": rates[start]}), model, pipeline.execution)
        for start, model in pipeline.starts().items()
    }
    _, _, x, y = next(iter(draw(family, episodes=1, meta_batch=1, seed=seed)))
    known = y[0] < family.ways - 1
    path = pipeline.folder / f"{name}-codes.png"
    _draw(path, lambda: plot_codes(learners, x[0, known], y[0, known], path, steps=pipeline.config.eval_steps))


def _report_scores(pipeline: Pipeline, seed: int) -> None:
    config = pipeline.config
    model = make_model(config)
    model.load_state_dict(pipeline.trained()["model"])
    learner = make_algorithm(config, model.to(pipeline.device), pipeline.execution, evaluation=True)
    for title, family in config.family.tests(config.tasks, pipeline.source, pipeline.device).items():
        steps = sorted({0, config.algorithm.inner_steps, config.eval_steps})
        scores = evaluate(learner, family, steps=steps, episodes=config.evaluation.episodes, seed=seed)
        print(f"{metric(config)} over {config.evaluation.episodes} {title}, 95 % confidence:")
        print_scores(config, scores)
        if isinstance(family, Sinusoid):
            _draw_sinusoids(learner, family, pipeline.folder / "sinusoids.png", tuple(step for step in steps if step))


def print_scores(config: RunConfig, scores: dict[int, Estimate], *, prefix: str = "  ") -> None:
    """One line a number of inner steps."""
    for steps, estimate in scores.items():
        when = "before adaptation" if steps == 0 else f"after {steps} inner step{'s' if steps > 1 else ''}"
        print(f"{prefix}{when:<21} {estimate.percent() if config.family.percent else estimate}")


def _draw_sinusoids(learner: MetaLearner, family: Sinusoid, path: Path, steps: tuple[int, ...]) -> None:
    _draw(path, lambda: plot_sinusoids(learner, family, path, steps=steps, seed=TEST_SEED))


def _draw(path: Path, draw: Callable[[], None]) -> None:
    """The picture is no reason to fail after a training run."""
    try:
        draw()
    except RuntimeError as error:
        print(f"no picture: {error}")
    else:
        print(f"picture: {path}")
