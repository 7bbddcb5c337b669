"""The command `fastmeta`: train, evaluate, explain, kernels."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from . import __version__, kernel_report
from .algorithms import MetaLearner
from .checkpoint import load_checkpoint
from .config import (
    PARTS,
    AlgorithmConfig,
    EvaluationConfig,
    Execution,
    RunConfig,
    TaskConfig,
    from_flat,
    make_algorithm,
    make_family,
    make_model,
)
from .evaluate import Estimate, draw, evaluate, evaluate_episodes
from .models import MODELS
from .options import add_options, given
from .plots import plot_sinusoids
from .presets import PRESETS
from .tasks import Characters, Episodes, Sinusoid, load_omniglot, load_runs, stack_runs
from .tasks.base import sampler_speed
from .train import Trainer

_EPILOG = """examples:
  fastmeta train
  fastmeta train omniglot --data images_background.zip --preset maml-5w1s
  fastmeta evaluate runs/maml-5w1s/checkpoint.pt --data images_evaluation.zip
  fastmeta evaluate runs/within/checkpoint.pt --runs all_runs.zip
  fastmeta explain conv4
"""

# Flags that mean nothing for sinusoids.
_CLASSIFICATION = {"ways", "channels", "within_alphabet", "rotations", "mirrored", "bn_statistics"}
_CLASSIFICATION |= {"augment", "augment_classes", "alphabets", "exclude_alphabets"}

_TEST_SEED = 1729
"""Of evaluation episodes: not a seed one trains with, so that they are new."""

_DATA_HELP = "Omniglot's zip files, or folders they unpack to"


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
        description="Meta-learning over all tasks at once: MAML, first-order MAML, Reptile.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastmeta {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "train": ("meta-train a network", _train, _add_train),
        "evaluate": ("score a checkpoint on new tasks", _evaluate, _add_evaluate),
        "explain": ("say how a network runs, and why", _explain, _add_explain),
        "kernels": ("figures of the Triton kernels, without a GPU", _kernels, _add_kernels),
    }
    for name, (text, function, add) in helps.items():
        command = commands.add_parser(
            name,
            help=text,
            description=function.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(command)
        add_options(command, "execution", Execution)
        command.add_argument("--traceback", action="store_true", help="show where an error comes from")
        command.set_defaults(function=function)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="?", choices=("sinusoid", "omniglot"), help="default: sinusoid")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="settings to start from, see below")
    parser.add_argument("--data", nargs="+", metavar="PATH", default=(), help=_DATA_HELP)
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
    titles = ("tasks", "adaptation", "outer loop", "evaluation")
    for title, config in zip(titles, PARTS.values(), strict=True):
        add_options(parser, title, config)
    sources = (
        textwrap.fill(f"{name}: {preset.source}", 100, initial_indent="  ", subsequent_indent="      ")
        for name, preset in PRESETS.items()
    )
    parser.epilog = "\n".join(["presets:", *sources])


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", nargs="+", metavar="PATH", default=(), help=_DATA_HELP)
    parser.add_argument("--runs", metavar="PATH", help="official one-shot runs: all_runs.zip or its folder")
    parser.add_argument("--steps", type=int, nargs="+", metavar="N", help="inner steps; default: the run's")
    parser.add_argument(
        "--bn-statistics",
        choices=("batch", "support", "both"),
        default="both",
        help="whose statistics normalise query samples; default: both",
    )
    parser.add_argument("--seed", type=int, default=_TEST_SEED, metavar="N", help="of the episodes")
    only = ("shots", "queries", "within_alphabet", "alphabets", "exclude_alphabets")
    add_options(parser, "tasks (default: all alphabets, otherwise as in training)", TaskConfig, only)
    add_options(parser, "evaluation", EvaluationConfig, ("episodes",))


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help=f"a checkpoint, a preset, or one of {', '.join(MODELS)}")
    add_options(parser, "adaptation", AlgorithmConfig)


def _train(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """Meta-train a network. Without arguments: exact MAML on sinusoids, in under a minute."""
    config = _run_config(arguments)
    execution = Execution(**given(arguments, Execution))
    device = execution.torch_device()
    characters = _characters(config, arguments.data)
    model = make_model(config).to(device)
    family = make_family(config, characters, device)
    settings = config.settings()
    if characters is not None:
        settings["data"] = characters.fingerprint()
    folder = Path(arguments.out or f"runs/{arguments.preset or config.tasks.task}")
    trainer = Trainer(
        make_algorithm(config, model, execution),
        family,
        config=config.train,
        folder=folder,
        settings=settings,
        checkpoint_seconds=arguments.checkpoint_seconds,
        time_limit=arguments.time_limit,
    )
    speed = sampler_speed(family, config.train.meta_batch)
    print(_describe(config, characters))
    print(f"on {device}, which samples {speed:,.0f} episodes a second", flush=True)
    outcome = trainer.run(resume=arguments.resume)
    print(f"{outcome.reason} at iteration {outcome.iterations:,}; checkpoint: {trainer.checkpoint}")
    if outcome.signal:
        print(f"resume with: {shlex.join(['fastmeta', *argv])}")
        return 128 + outcome.signal
    evaluated = make_algorithm(config, model, execution, evaluation=True)
    tasks = make_family(config, characters, device, evaluation=True)
    steps = sorted({0, config.algorithm.inner_steps, config.eval_steps})
    scores = evaluate(evaluated, tasks, steps=steps, episodes=config.evaluation.episodes, seed=_TEST_SEED)
    where = "new sinusoids" if characters is None else "new episodes of the characters trained on"
    print(f"{_metric(config)} over {config.evaluation.episodes} {where}, 95 % confidence:")
    _print_scores(config, scores)
    if isinstance(tasks, Sinusoid):
        picture = folder / "sinusoids.png"
        _draw(evaluated, tasks, picture, steps=tuple(step for step in steps if step))
    return 0


def _run_config(arguments: argparse.Namespace) -> RunConfig:
    """Preset, then options, checked against each other."""
    preset = arguments.preset or arguments.task or "sinusoid"
    base = PRESETS[preset].config
    if arguments.task not in (None, base.tasks.task):
        raise ValueError(f"--preset {preset} is for task {base.tasks.task}, got task {arguments.task}")
    changes = {name: value for config in PARTS.values() for name, value in given(arguments, config).items()}
    changes.pop("task", None)
    if base.tasks.task == "sinusoid":
        foreign = sorted(changes.keys() & _CLASSIFICATION)
        if foreign or arguments.data:
            flag = "--" + (foreign[0].replace("_", "-") if foreign else "data")
            raise ValueError(f"{flag} has no meaning for sinusoids; did you mean 'fastmeta train omniglot'?")
    return base.replace(changes)


def _characters(config: RunConfig, paths: Sequence[str]) -> Characters | None:
    """The chosen alphabets of the data; None for a task without data."""
    if config.tasks.task == "sinusoid":
        return None
    if not paths:
        raise ValueError(f"task {config.tasks.task} needs images: name zip files or folders with --data")
    return load_omniglot(paths).select(keep=config.tasks.alphabets, drop=config.tasks.exclude_alphabets)


def _describe(config: RunConfig, characters: Characters | None) -> str:
    tasks, adaptation = config.tasks, config.algorithm
    what = "sinusoids" if characters is None else characters.describe()
    ways = "" if characters is None else f"{tasks.ways}-way "
    within = " within an alphabet" if tasks.within_alphabet else ""
    return (
        f"{what}\n{adaptation.algorithm}, {ways}{tasks.shots}-shot{within}, {tasks.model}, "
        f"{adaptation.inner_steps} inner step(s) of {adaptation.inner_optimizer} {adaptation.inner_lr:g}, "
        f"{config.train.meta_batch} tasks a meta-step"
    )


def _metric(config: RunConfig) -> str:
    return "mean squared error" if config.tasks.task == "sinusoid" else "accuracy"


def _print_scores(config: RunConfig, scores: dict[int, Estimate], *, prefix: str = "  ") -> None:
    for steps, estimate in scores.items():
        when = "before adaptation" if steps == 0 else f"after {steps} inner step{'s' if steps > 1 else ''}"
        text = str(estimate) if config.tasks.task == "sinusoid" else estimate.percent()
        print(f"{prefix}{when:<21} {text}")


def _draw(algorithm: MetaLearner, family: Sinusoid, path: Path, *, steps: tuple[int, ...]) -> None:
    """The picture is no reason to fail after a training run."""
    try:
        plot_sinusoids(algorithm, family, path, steps=steps, seed=_TEST_SEED)
    except RuntimeError as error:
        print(f"no picture: {error}")
    else:
        print(f"picture: {path}")


def _evaluate(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """Score a checkpoint on new tasks: mean and 95 % confidence interval."""
    state = load_checkpoint(arguments.checkpoint)
    trained = _trained_config(state, arguments.checkpoint)
    changes = {"alphabets": (), "exclude_alphabets": ()} | given(arguments, TaskConfig)
    config = trained.replace(changes | given(arguments, EvaluationConfig))
    steps = sorted(set(arguments.steps or [config.eval_steps]))
    execution = Execution(**given(arguments, Execution))
    model = make_model(config)
    model.load_state_dict(state["model"])
    model.to(execution.torch_device())
    print(f"{arguments.checkpoint}, iteration {state['iteration']:,}")
    for title, batches in _test_sets(arguments, config, execution.torch_device()):
        print(title)
        for statistics in _statistics(arguments, config):
            algorithm = make_algorithm(config, model, execution, evaluation=True, bn_statistics=statistics)
            prefix = "  " if config.tasks.task == "sinusoid" else f"  bn_statistics={statistics:<8} "
            _print_scores(config, evaluate_episodes(algorithm, batches(), steps=steps), prefix=prefix)
    return 0


def _trained_config(state: dict[str, Any], path: Path) -> RunConfig:
    if "task" not in state["configuration"]:
        raise ValueError(
            f"{path} does not say which network it holds: it was not written by 'fastmeta train'. "
            f'Build the network in Python and load the checkpoint\'s "model" into it'
        )
    return from_flat(state["configuration"])


def _test_sets(
    arguments: argparse.Namespace, config: RunConfig, device: torch.device
) -> Iterator[tuple[str, Callable[[], Iterable[Episodes]]]]:
    """What to score: a title, and the episodes, which every setting of `bn_statistics` draws anew."""
    sinusoid = config.tasks.task == "sinusoid"
    if sinusoid and (arguments.data or arguments.runs):
        raise ValueError("--data and --runs have no meaning for sinusoids; leave them out")
    if arguments.runs:
        runs = stack_runs(load_runs(arguments.runs), device)
        classes = runs.support_x.shape[1]
        if classes != config.tasks.ways:
            raise ValueError(f"the runs have {classes} classes, the checkpoint's network {config.tasks.ways}")
        count = len(runs.support_x)
        yield (
            f"{count} official runs, {classes}-way 1-shot: accuracy over runs, 95 % confidence",
            lambda: [runs],
        )
    if sinusoid or arguments.data or not arguments.runs:
        characters = _characters(config, arguments.data)
        family = make_family(config, characters, device, evaluation=True)
        episodes = config.evaluation.episodes
        what = f"{_metric(config)} over {episodes} episodes, 95 % confidence"
        yield (
            f"{_describe(config, characters)}\n{what}",
            partial(draw, family, episodes=episodes, meta_batch=25, seed=arguments.seed),
        )


def _statistics(arguments: argparse.Namespace, config: RunConfig) -> Sequence[Literal["batch", "support"]]:
    """The settings of `bn_statistics` to score; one where the network has no batch norm."""
    if config.tasks.task == "sinusoid":
        return ("batch",)
    return ("batch", "support") if arguments.bn_statistics == "both" else (arguments.bn_statistics,)


def _explain(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """Say op by op how a network runs, and why: for a meta-step of its usual shapes."""
    config = _explained_config(arguments.target).replace(given(arguments, AlgorithmConfig))
    execution = Execution(**given(arguments, Execution))
    device = execution.torch_device()
    algorithm = make_algorithm(config, make_model(config).to(device), execution)
    tasks = config.tasks
    support, query = ((tasks.train_shots or tasks.shots), tasks.queries)
    if tasks.task == "sinusoid":
        episodes = Sinusoid(shots=support, queries=query, device=device).sample(2, torch.Generator(device))
    else:
        labels = torch.arange(tasks.ways, device=device)
        counts = (tasks.ways * support, tasks.ways * query)
        x = [torch.rand(2, count, 1, 28, 28, device=device) for count in counts]
        y = [labels.repeat(count // tasks.ways).expand(2, -1) for count in counts]
        episodes = Episodes(x[0], y[0], x[1], y[1])
    algorithm(*episodes)
    print(algorithm.explain())
    return 0


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", choices=kernel_report.TARGETS, help="compile every kernel for this architecture")
    what.add_argument("--count", choices=tuple(kernel_report.WORKLOADS), help="launches and bytes of one meta-step")
    parser.add_argument(
        "--workload", nargs="+", choices=tuple(kernel_report.WORKLOADS), default=kernel_report.DESIGNED,
        help=f"what to compile; default: {' '.join(kernel_report.DESIGNED)}",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _kernels(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """Compile the Triton kernels for a GPU that is not there, or count what they do to memory.

    With --target: registers, stack, shared memory, programs a multiprocessor holds, matrix instructions and widths of
    global accesses, for every kernel and precision; the exit status is 1 where one spills, asks for more shared memory
    than there is, or multiplies in another precision than asked for. With --count, which runs in Triton's interpreter:
    launches of a meta-step, bytes asked for, distinct bytes and compulsory bytes.
    """
    if arguments.count:
        counts = kernel_report.counts(arguments.count)
        lines = (f"{key}: {', '.join(value) if isinstance(value, list) else value}" for key, value in counts.items())
        print(json.dumps(counts, indent=1) if arguments.json else "\n".join(lines))
        return 0
    rows = kernel_report.compiled(arguments.target, arguments.workload)
    print(json.dumps(rows, indent=1) if arguments.json else kernel_report.table(rows))
    wrong = kernel_report.problems(rows)
    for problem in wrong:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if wrong else 0


def _explained_config(target: str) -> RunConfig:
    if target in PRESETS:
        return PRESETS[target].config
    if target in MODELS:
        sinusoid = target == "sinusoid-mlp"
        return PRESETS["sinusoid" if sinusoid else "omniglot"].config.replace({"model": target})
    if not Path(target).exists():
        names = ", ".join([*PRESETS, *MODELS])
        raise ValueError(f"target must be a checkpoint or one of {names}, got {target!r}")
    return _trained_config(load_checkpoint(Path(target)), Path(target))
