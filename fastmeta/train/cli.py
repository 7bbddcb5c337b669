"""The command `fastmeta`: train, evaluate, compare, drift, explain, list, doctor."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from fastmeta import __version__
from fastmeta.models import MODELS
from fastmeta.tasks import PRETEXTS, Episodes, load_runs, stack_runs

from .build import load_source, make_algorithm, make_family, make_model
from .checkpoint import load_checkpoint
from .config import PARTS, AlgorithmConfig, EvaluationConfig, Execution, RunConfig, from_checkpoint
from .contest_command import add_compare, compare
from .cross_domain import other_images
from .doctor_command import add_doctor, doctor
from .drift_command import add_drift, drift
from .families.registry import FAMILIES
from .flags import add_options, given
from .methods.registry import METHODS
from .pipeline import Pipeline, prepare
from .presets import PRESETS, start_of
from .results import describe, print_scores, show_cross_domain, show_results
from .run_config import from_values
from .scores.evaluate import TEST_SEED, draw, evaluate_episodes

TASKS = tuple(family.settings_type for family in FAMILIES.values())
"""Settings of all families: each is an option, of the families that have it."""

OWN = tuple(dict.fromkeys(method.settings_type for method in METHODS.values()))
"""Settings that only some algorithms have: each is an option of those."""

_EPILOG = """examples:
  fastmeta train
  fastmeta train omniglot --data images_background.zip --preset maml-5w1s
  fastmeta train umtra --data my_images/
  fastmeta list
  fastmeta evaluate runs/maml-5w1s/checkpoint.pt --data images_evaluation.zip
  fastmeta evaluate runs/maml-5w1s/checkpoint.pt --data cifar-10-batches-bin/
  fastmeta evaluate runs/within/checkpoint.pt --runs all_runs.zip
  fastmeta compare omniglot --data images_background.zip --test-data images_evaluation.zip --algorithms maml fomaml
  fastmeta explain conv4
  fastmeta doctor
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 is success, 2 an error of the user's, 128 + n a stop by signal n."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(argv)
    try:
        return arguments.function(arguments, argv)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        if arguments.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastmeta",
        description="Meta-learning over all tasks at once: MAML and its relatives.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastmeta {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "train": ("meta-train a network", _train, _add_train),
        "evaluate": ("score a checkpoint on new tasks", _evaluate, _add_evaluate),
        "compare": ("train several algorithms for the same time, and compare them", compare, add_compare),
        "drift": ("learn along streams whose task changes", drift, add_drift),
        "list": ("name all task families, networks, presets and algorithms", _list, lambda _: None),
        "explain": ("say how a network runs, and why", _explain, _add_explain),
        "doctor": ("say what this machine runs, and what is missing", doctor, add_doctor),
    }
    for name, (text, function, add) in helps.items():
        command = commands.add_parser(
            name,
            help=text,
            description=function.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(command)
        if name not in ("list", "doctor"):
            add_options(command, "execution", Execution)
        command.add_argument("--traceback", action="store_true", help="show where an error comes from")
        command.set_defaults(function=function)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="?", choices=tuple(FAMILIES), help="default: sinusoid; see fastmeta list")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="settings to start from, see below")
    parser.add_argument("--data", nargs="+", metavar="PATH", default=(), help="what the task reads, see fastmeta list")
    parser.add_argument("--out", metavar="FOLDER", help="default: runs/PRESET")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the folder's checkpoint where there is one (default), or start over",
    )
    parser.add_argument("--time-limit", type=float, metavar="MINUTES", help="stop then, with a checkpoint")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=30.0, metavar="X", help="between checkpoints; default: 30"
    )
    add_options(parser, "tasks", *TASKS)
    add_options(parser, "some algorithms' own", *OWN)
    titles = ("adaptation", "outer loop", "pre-training", "evaluation")
    for title, config in zip(titles, PARTS.values(), strict=True):
        add_options(parser, title, config)
    sources = (
        textwrap.fill(
            f"{name}: {preset.source}", 100, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
        )
        for name, preset in PRESETS.items()
    )
    parser.epilog = "\n".join(["presets:", *sources])


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    data = "what the task reads, see fastmeta list; of a few-shot classifier any images with labels"
    parser.add_argument("--data", nargs="+", metavar="PATH", default=(), help=data)
    parser.add_argument("--runs", metavar="PATH", help="official one-shot runs: all_runs.zip or its folder")
    parser.add_argument("--steps", type=int, nargs="+", metavar="N", help="inner steps; default: the run's")
    parser.add_argument(
        "--bn-statistics",
        choices=("batch", "support", "both"),
        default="both",
        help="whose statistics normalise query samples; default: both",
    )
    parser.add_argument("--seed", type=int, default=TEST_SEED, metavar="N", help="of the episodes")
    only = ("shots", "queries", "within_alphabet", "alphabets", "exclude_alphabets", "new_pretext", "group")
    add_options(parser, "tasks (default: all alphabets, otherwise as in training)", *TASKS, only=only)
    add_options(parser, "evaluation", EvaluationConfig, only=("episodes",))


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help=f"a checkpoint, a preset, or one of {', '.join(MODELS)}")
    add_options(parser, "adaptation", AlgorithmConfig)
    add_options(parser, "some algorithms' own", *OWN)


def _train(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """Meta-train a network. Without arguments: exact MAML on sinusoids, in under a minute."""
    config, source = prepare(_run_config(arguments), arguments.data)
    pipeline = Pipeline(
        config,
        source,
        folder=Path(arguments.out or f"runs/{arguments.preset or config.tasks.task}"),
        execution=_execution(arguments),
        checkpoint_seconds=arguments.checkpoint_seconds,
        time_limit=arguments.time_limit,
        say=partial(print, flush=True),
    )
    print(describe(config, source))
    outcome = pipeline.train(resume=arguments.resume)
    print(f"{outcome.reason} at iteration {outcome.iterations:,}; checkpoint: {pipeline.folder / 'checkpoint.pt'}")
    if outcome.signal:
        print(f"resume with: {shlex.join(['fastmeta', *argv])}")
        return 128 + outcome.signal
    if not (pipeline.folder / "checkpoint.pt").exists():
        return 0  # the time was up in an earlier stage
    show_results(pipeline, steps=None, seed=TEST_SEED)
    return 0


def _execution(arguments: argparse.Namespace) -> Execution:
    return from_values(Execution, given(arguments, Execution))


def _run_config(arguments: argparse.Namespace) -> RunConfig:
    """Preset, then options, checked against each other."""
    preset = arguments.preset or start_of(arguments.task or "sinusoid", arguments.algorithm)
    base = PRESETS[preset].config
    if arguments.task not in (None, base.tasks.task):
        raise ValueError(f"--preset {preset} is for task {base.tasks.task}, got task {arguments.task}")
    return _changed(base, given(arguments, *TASKS, *OWN, *PARTS.values()))


def _changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The run with what the command line sets.

    Raises:
        ValueError: for an option that has no meaning for the run's task or algorithm, or a value out of range.
    """
    algorithm = changes.get("algorithm", config.algorithm.algorithm)
    changes = _with_ranges(config, changes)
    for name in sorted(changes):
        for kind, chosen, known in (("task", config.tasks.task, FAMILIES), ("algorithm", algorithm, METHODS)):
            owners = [title for title, entry in known.items() if name in entry.settings]
            if owners and chosen not in owners:
                raise ValueError(
                    f"--{name.replace('_', '-')} has no meaning for {kind} {chosen}; it belongs to {', '.join(owners)}"
                )
    return config.replace(changes)


def _with_ranges(config: RunConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """What a range of ways or shots changes beside: a single number ends one, and padding needs a network for it."""
    known = config.family.settings
    changes = dict(changes)
    for name in ("ways", "shots"):
        fewest = f"fewest_{name}"
        if fewest in changes and fewest not in known:
            able = ", ".join(task for task, family in FAMILIES.items() if fewest in family.settings)
            raise ValueError(
                f"--{name} must be one number for task {config.tasks.task}, got the range {changes[fewest]}:"
                f"{changes[name]}; ranges belong to {able}"
            )
        if name in changes and fewest in known:
            changes.setdefault(fewest, None)
    varied = any(changes.get(f"fewest_{name}") is not None for name in ("ways", "shots"))
    if (varied or changes.get("imbalance")) and config.tasks.model == "conv4":
        changes.setdefault("model", "conv4-padded")
    return changes


def _list(_: argparse.Namespace, __: Sequence[str]) -> int:
    """Name every task family, network, preset and algorithm with one line each."""
    sections = {
        "task families (fastmeta train NAME)": {name: family.summary for name, family in FAMILIES.items()},
        "what --data takes": {name: family.data or "nothing" for name, family in FAMILIES.items()},
        "pretexts of ssl-images (--pretexts, --new-pretext)": {n: p.summary for n, p in PRETEXTS.items()},
        "networks (--model)": MODELS,
        "presets (--preset)": {name: f"{p.config.summary()}; {p.source.split(':')[0]}" for name, p in PRESETS.items()},
        "algorithms (--algorithm)": {name: method.summary for name, method in METHODS.items()},
    }
    for title, entries in sections.items():
        print(title)
        width = max(map(len, entries))
        for name, text in entries.items():
            print(f"  {name:<{width}} {' '.join(text.split())}")
    return 0


def _evaluate(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """Score a checkpoint on new tasks: mean and 95 % confidence interval.

    A few-shot classifier can be scored on any images with labels: their channels and size are matched to its network.
    """
    state = load_checkpoint(arguments.checkpoint)
    trained = _trained_config(state, arguments.checkpoint)
    chosen = ("alphabets", "exclude_alphabets", "weights")  # of the training data
    everything = {name: () for name in chosen if name in trained.family.settings}
    config = _changed(trained, everything | given(arguments, *TASKS, EvaluationConfig))
    execution = _execution(arguments)
    print(f"{arguments.checkpoint}, iteration {state['iteration']:,}")
    others = None if arguments.runs else other_images(config, arguments.data)
    if others is not None:
        steps, statistics = _steps(arguments, config), _statistics(arguments, config)
        show_cross_domain(config, others, state, execution, steps=steps, statistics=statistics, seed=arguments.seed)
        return 0
    if config.family.evaluation != "trained network":
        _compare(arguments, config, execution, state)
        return 0
    steps = _steps(arguments, config)
    model = make_model(config).to(execution.torch_device())
    for title, batches in _test_sets(arguments, config, execution.torch_device(), state):
        print(title)
        for statistics in _statistics(arguments, config):
            algorithm = make_algorithm(config, model, execution, evaluation=True, bn_statistics=statistics)
            algorithm.load_state_dict(state["algorithm"])
            prefix = f"  bn_statistics={statistics:<8} " if len(config.bn_statistics) > 1 else "  "
            scores = evaluate_episodes(
                algorithm, batches(), steps=steps, measure=config.family.score, worst=config.family.worst
            )
            print_scores(config, scores, prefix=prefix)
    return 0


def _compare(arguments: argparse.Namespace, config: RunConfig, execution: Execution, state: dict[str, Any]) -> None:
    """On the data that the run kept from training; on all of other data."""
    if arguments.runs:
        raise ValueError(f"--runs has no meaning for task {config.tasks.task}; leave it out")
    source = load_source(config, arguments.data)
    if source is not None and source.fingerprint() != _data_of(state):
        config = config.replace({"held_out": 0.0})
    shape = config.family.shape(config.tasks, source)
    if shape != config.tasks.shape:
        raise ValueError(f"the checkpoint's network takes data of shape {config.tasks.shape}, these have {shape}")
    print(describe(config, source))
    pipeline = Pipeline(config, source, folder=arguments.checkpoint.parent, execution=execution)
    show_results(pipeline, steps=arguments.steps, seed=arguments.seed, picture="evaluation")


def _data_of(state: dict[str, Any]) -> str | None:
    """The fingerprint of the data that a checkpoint was trained on."""
    return state["configuration"].get("data")


def _trained_config(state: dict[str, Any], path: Path) -> RunConfig:
    if "task" not in state["configuration"]:
        raise ValueError(
            f"{path} does not say which network it holds: it was not written by 'fastmeta train'. "
            f'Build the network in Python and load the checkpoint\'s "model" into it'
        )
    return from_checkpoint(state["configuration"])


def _test_sets(
    arguments: argparse.Namespace, config: RunConfig, device: torch.device, state: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], Iterable[Episodes]]]]:
    """What to score: a title, and the episodes, which every setting of `bn_statistics` draws anew."""
    family = config.family
    if not family.data and (arguments.data or arguments.runs):
        raise ValueError(f"--data and --runs have no meaning for {family.describe(None)}; leave them out")
    if arguments.runs and not family.official_runs:
        raise ValueError(f"--runs has no meaning for task {family.name}; leave it out")
    if arguments.runs:
        runs = stack_runs(load_runs(arguments.runs), device)
        classes, ways = runs.support_x.shape[1], config.flat()["ways"]
        if classes != ways:
            raise ValueError(f"the runs have {classes} classes, the checkpoint's network {ways}")
        count = len(runs.support_x)
        yield (
            f"{count} official runs, {classes}-way 1-shot: accuracy over runs, 95 % confidence",
            lambda: [runs],
        )
    if arguments.data or not arguments.runs:
        source = load_source(config, arguments.data)
        if source is not None and source.fingerprint() != _data_of(state):  # nothing of these was kept from training
            whole = {"held_out": 0.0, "split": None}
            config = config.replace({name: value for name, value in whole.items() if name in family.settings})
        make_family(config, source, device, evaluation=True)
        episodes, about = config.evaluation.episodes, describe(config, source) + "\n"
        tests = family.tests(config.tasks, source, device)
        for title, tasks in tests.items():
            what = title if len(tests) > 1 else "episodes"
            heading = f"{about}{family.metric} over {episodes} {what}, 95 % confidence"
            yield heading, partial(draw, tasks, episodes=episodes, meta_batch=25, seed=arguments.seed)
            about = ""


def _steps(arguments: argparse.Namespace, config: RunConfig) -> list[int]:
    """Numbers of inner steps to score."""
    if config.method.inner_loop:
        return sorted(set(arguments.steps or [config.eval_steps]))
    if arguments.steps:
        raise ValueError(f"--steps has no meaning for algorithm {config.algorithm.algorithm}, which has no inner loop")
    return [0]


def _statistics(arguments: argparse.Namespace, config: RunConfig) -> Sequence[Literal["batch", "support"]]:
    """The settings of `bn_statistics` to score; one where the network has no batch norm."""
    if arguments.bn_statistics == "support" and not config.method.bn_statistics:
        raise ValueError(f"--bn-statistics support has no meaning for algorithm {config.algorithm.algorithm}")
    if arguments.bn_statistics == "support" and config.tasks.model == "conv4-padded":
        raise ValueError("--bn-statistics support has no meaning for network conv4-padded, whose batch norm is its own")
    if arguments.bn_statistics == "both" or len(config.bn_statistics) == 1:
        return config.bn_statistics
    return (arguments.bn_statistics,)


def _explain(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """Say op by op how a network runs, and why: for a meta-step of its usual shapes."""
    config = _changed(_explained_config(arguments.target), given(arguments, AlgorithmConfig, *OWN))
    execution = _execution(arguments)
    device = execution.torch_device()
    if not config.tasks.shape:
        config = config.replace({"shape": config.family.usual_shape(config.tasks)})
    algorithm = make_algorithm(config, make_model(config).to(device), execution)
    algorithm(*config.family.example(config.tasks, device))
    print(algorithm.explain())
    return 0


def _explained_config(target: str) -> RunConfig:
    if target in PRESETS:
        return PRESETS[target].config
    if target in MODELS:
        task = next(name for name, family in FAMILIES.items() if target in family.settings_type.models)
        return PRESETS[task].config.replace({"model": target})
    if not Path(target).exists():
        names = ", ".join([*PRESETS, *MODELS])
        raise ValueError(f"target must be a checkpoint or one of {names}, got {target!r}")
    return _trained_config(load_checkpoint(Path(target)), Path(target))
