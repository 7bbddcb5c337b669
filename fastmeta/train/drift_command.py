"""The command `fastmeta drift`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks import AlphabetStream, Characters, DriftingSinusoids
from fastmeta.tasks.base import check_count
from fastmeta.tasks.drift import Stream

from .build import load_source, make_algorithm, make_model
from .checkpoint import load_checkpoint
from .config import Execution, RunConfig, from_checkpoint
from .drift import Drift
from .families.base import Source
from .flags import given
from .run_config import from_values
from .scores.drift_plot import plot_drift


def add_drift(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("checkpoint", type=Path, help="of task sinusoid or omniglot")
    parser.add_argument("--data", nargs="+", metavar="PATH", default=(), help="Omniglot's files; none for sinusoids")
    parser.add_argument("--streams", type=int, default=50, metavar="N", help="streams to average over; default: 50")
    parser.add_argument("--phases", type=int, default=6, metavar="N", help="tasks one after another; default: 6")
    parser.add_argument("--chunks", type=int, default=5, metavar="N", help="chunks of data of each; default: 5")
    parser.add_argument("--steps", type=int, metavar="N", help="inner steps on each chunk; default: the run's")
    parser.add_argument("--out", metavar="FOLDER", help="default: the checkpoint's folder")


def drift(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """Learn along streams whose task changes: a meta-learned start against fine-tuning on and learning from scratch.

    Sinusoids drift in amplitude and phase; of Omniglot, alphabets come one after another. Every task is predicted
    before it is learned from, and the first one again and again. What is finished is kept: the same command goes on
    after a kill.
    """
    state = load_checkpoint(arguments.checkpoint)
    if "task" not in state["configuration"]:
        raise ValueError(f"{arguments.checkpoint} was not written by 'fastmeta train'")
    config = from_checkpoint(state["configuration"])
    check_count("streams", arguments.streams, minimum=2)
    if not config.method.inner_loop or not config.method.longer:
        raise ValueError(
            f"algorithm {config.algorithm.algorithm} cannot go on adapting; take a checkpoint of maml or reptile"
        )
    if "alphabets" in config.family.settings:
        config = config.replace({"alphabets": (), "exclude_alphabets": ()})
    steps = config.eval_steps if arguments.steps is None else arguments.steps
    check_count("steps", steps)
    execution = from_values(Execution, given(arguments, Execution))
    device = execution.torch_device()
    source = load_source(config, arguments.data)
    run = Drift(
        stream_of(config, source, phases=arguments.phases, chunks=arguments.chunks, device=device),
        _Maker(config, state, execution),
        folder=arguments.checkpoint.parent if arguments.out is None else Path(arguments.out),
        identity={
            "settings": state["configuration"], "iteration": state["iteration"], "streams": arguments.streams,
            "data": None if source is None else source.fingerprint(), "phases": arguments.phases,
            "chunks": arguments.chunks, "steps": steps,
        },
        device=device, streams=arguments.streams, steps=steps, percent=config.family.percent,
        measure=config.family.score,
    )  # fmt: skip
    run.run()
    print(f"{config.family.metric} on {arguments.streams} streams of {config.family.describe(source)}")
    print(run.table())
    (run.folder / "drift.md").write_text(run.table() + "\n")
    _draw(run, config)
    return 0


def stream_of(config: RunConfig, source: Source | None, *, phases: int, chunks: int, device: torch.device) -> Stream:
    """Streams of tasks like those that the run was trained on.

    Raises:
        ValueError: a run of another family, or data too small.
    """
    tasks = config.tasks
    if tasks.task == "sinusoid":
        return DriftingSinusoids(phases=phases, chunks=chunks, shots=tasks.shots, queries=50, device=device)
    if not isinstance(source, Characters):
        raise ValueError(f"checkpoint must be of task sinusoid or omniglot, got one of {tasks.task}")
    ways = config.flat()["ways"]
    return AlphabetStream(
        source, phases=phases, chunks=chunks, ways=ways, shots=tasks.shots, queries=tasks.queries, device=device
    )


class _Maker:
    """Learners of a checkpoint, and of a network from scratch, with a factor of the step size."""

    def __init__(self, config: RunConfig, state: dict[str, Any], execution: Execution) -> None:
        self._config, self._state, self._execution = config, state, execution

    def __call__(self, *, trained: bool, factor: float) -> MetaLearner:
        algorithm = self._config.algorithm
        config = self._config.replace({
            "inner_lr": factor * algorithm.inner_lr, "seed": self._config.train.seed + (0 if trained else 1)
        })  # fmt: skip
        model = make_model(config).to(self._execution.torch_device())
        learner = make_algorithm(config, model, self._execution, evaluation=True)
        if trained:
            learner.load_state_dict(self._state["algorithm"])
        return learner


def _draw(run: Drift, config: RunConfig) -> None:
    phases = [moment.phase for moment in run.moments()]
    changes = [t for t in range(1, len(phases)) if phases[t] != phases[t - 1]] if run.stream.sudden else []
    path = run.folder / "drift.png"
    courses = {name: (course.present, course.first) for name, course in run.courses.items()}
    try:
        plot_drift(courses, path, changes=changes, percent=run.percent, measure=config.family.metric)
    except RuntimeError as error:  # the picture is no reason to fail
        print(f"no picture: {error}")
    else:
        print(f"picture: {path}")
