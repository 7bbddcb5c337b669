"""Command line of the benchmark. Modules that import torch come after the limit on threads is set."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from . import environment

ALGORITHMS = ("maml", "fomaml", "reptile")
AXES = ("tasks", "steps", "width")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Seven commands: run, scaling, train, report, predict, kernels, gpu."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="fastmeta beside its peers.")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="time meta-steps, each peer checked before it is timed")
    run.add_argument("--workload", nargs="+", metavar="NAME", help="default: all that fit the device")
    run.add_argument("--algorithm", nargs="+", choices=ALGORITHMS, default=["maml"], help="default: maml")
    run.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default: %(default)s)")
    run.add_argument("--budget", type=float, default=10, help="seconds of timing for a peer (default: %(default)s)")
    run.add_argument(
        "--patience", type=float, default=400, help="seconds after which a first call is given up (default: 400)"
    )

    scaling = commands.add_parser("scaling", help="time and memory over tasks, inner steps and width")
    scaling.add_argument("--workload", default="sinusoid", metavar="NAME", help="default: %(default)s")
    scaling.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES), help="default: all")
    scaling.add_argument("--values", nargs="+", type=int, help="of the axis, ascending (default: five)")
    scaling.add_argument("--algorithm", choices=ALGORITHMS, default="maml")
    scaling.add_argument(
        "--memory-limit", type=float, default=8, metavar="GIB", help="of a peer on a CPU (default: %(default)s)"
    )
    scaling.add_argument("--step-limit", type=float, default=1, help="seconds of a step that end an axis (default: 1)")
    scaling.add_argument("--time-limit", type=float, default=120, help="seconds of a peer and axis (default: 120)")

    train = commands.add_parser("train", help="whole training steps, and the share of them outside the engine")
    train.add_argument("--run", nargs="+", choices=("sinusoid", "omniglot"), default=["sinusoid", "omniglot"])
    train.add_argument("--path", nargs="+", choices=("eager", "compiled", "triton"), help="default: all")
    train.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: %(default)s)")

    for command in (run, scaling):
        command.add_argument("--peer", nargs="+", metavar="NAME", help="a wrong name prints all; default: most")
        command.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    for command in (run, scaling, train):
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        command.add_argument("--threads", type=int, help="of every library (default: 2; all cores beside a GPU)")
        command.add_argument("--quick", action="store_true", help="tiny sizes: does everything run and pass its gate?")
        command.add_argument("--out", type=Path, help="result file, JSON")

    report = commands.add_parser("report", help="Markdown tables and figures of result files")
    report.add_argument("files", nargs="+", type=Path)
    report.add_argument("--figures", type=Path, metavar="DIR", help="write PNG figures there")
    report.add_argument("--out", type=Path, metavar="FILE", help="write the tables there; default: print them")
    report.add_argument("--readme", type=Path, metavar="FILE", help="put the summary between its bench marks")

    predict = commands.add_parser("predict", help="meta-steps on a GPU that is not there; takes minutes")
    predict.add_argument("--workload", nargs="+", metavar="NAME", help="default: the three on images")
    predict.add_argument("--processes", type=int, help="default: one a core")
    predict.add_argument("--out", type=Path, help="result file, JSON")

    kernels = commands.add_parser("kernels", help="figures of the Triton kernels, without a GPU")
    if "kernels" in (sys.argv[1:] if arguments is None else arguments)[:1]:  # its module imports torch
        from bench.kernels import command

        command.add_options(kernels)

    gpu = commands.add_parser("gpu", help="everything that needs a GPU, within nine minutes")
    gpu.add_argument("--out", type=Path, required=True, metavar="DIR", help="a handful of JSON files, and table.md")
    gpu.add_argument("--part", nargs="+", metavar="NAME", help="default: all")
    gpu.add_argument("--limit", type=float, default=520, help="seconds of all parts together (default: %(default)s)")
    gpu.add_argument("--wheels", type=Path, metavar="DIR", help="wheels of further peers, unpacked for this run")
    gpu.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="cpu: does every part start and end?")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; user errors print one line and give status 2."""
    options = parse(arguments)
    commands = {
        "run": run, "scaling": scaling, "train": train, "report": report, "predict": predict, "kernels": kernels,
        "gpu": gpu,
    }  # fmt: skip
    try:
        return commands[options.command](options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def report(options: argparse.Namespace) -> int:
    """Tables and figures."""
    from .report import report as tables
    from .report import update_readme

    text = tables(options.files)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")
    if options.figures is not None:
        from .figures import draw

        for path in draw(options.files, options.figures):
            print(f"wrote {path}", file=sys.stderr)
    if options.readme is not None:
        update_readme(options.readme, options.files)
    return 0


def predict(options: argparse.Namespace) -> int:
    """Counts, and what they would take."""
    from .predict import PREDICTED, run

    result = run(
        known("workload", options.workload or PREDICTED, PREDICTED),
        processes=options.processes or len(os.sched_getaffinity(0)), out=options.out,
    )  # fmt: skip
    return _show(result)


def kernels(options: argparse.Namespace) -> int:
    """Kernels without a GPU."""
    from bench.kernels import command

    return command.run(options)


def gpu(options: argparse.Namespace) -> int:
    """Everything that needs a GPU."""
    from .gpu import PARTS, run

    names = known("part", options.part or PARTS, PARTS)
    return run(names, out=options.out, limit_s=options.limit, device=options.device, wheels=options.wheels)


def run(options: argparse.Namespace) -> int:
    """Meta-steps beside the peers."""
    _prepare(options)
    from . import run as runner
    from .peers import PEERS, peers_for
    from .workloads import WORKLOADS, workloads_for

    result = runner.run(
        workloads=known("workload", options.workload or workloads_for(options.device), WORKLOADS),
        peers=known("peer", options.peer or peers_for(options.device), PEERS),
        algorithms=options.algorithm,
        settings=runner.Settings(
            device=options.device, precision=options.precision, rounds=options.rounds, budget_s=options.budget,
            patience_s=options.patience, threads=options.threads,
        ),
        small=options.quick,
        out=options.out,
    )  # fmt: skip
    return _show(result)


def scaling(options: argparse.Namespace) -> int:
    """Curves over tasks, steps and width."""
    _prepare(options)
    from . import scaling as curves
    from .peers import PEERS
    from .workloads import WORKLOADS

    (workload,) = known("workload", [options.workload], WORKLOADS)
    peers = options.peer or (*curves.PEERS, *curves.EXTRA[options.device])
    result = curves.run(
        workload=workload, axes=options.axis, values=options.values, peers=known("peer", peers, PEERS),
        algorithm=options.algorithm, device=options.device, precision=options.precision,
        memory_gib=options.memory_limit, step_s=options.step_limit, limit_s=options.time_limit,
        threads=options.threads, quick=options.quick, out=options.out,
    )  # fmt: skip
    return _show(result)


def train(options: argparse.Namespace) -> int:
    """Whole training steps."""
    _prepare(options)
    from . import end_to_end

    result = end_to_end.run(
        runs=options.run, paths=options.path or end_to_end.PATHS, device=options.device, rounds=options.rounds,
        threads=options.threads, quick=options.quick, out=options.out,
    )  # fmt: skip
    return _show(result)


def _prepare(options: argparse.Namespace) -> None:
    if options.threads is None:
        cores = len(os.sched_getaffinity(0))
        options.threads = cores if options.device == "cuda" else min(2, cores)
    environment.limit_threads(options.threads)
    environment.choose_device(options.device)
    environment.empty_compiler_cache()


def _show(result: dict[str, Any]) -> int:
    from .report import section

    print("\n" + section(result))
    return 0


def known(kind: str, names: Iterable[str], legal: Collection[str]) -> list[str]:
    """The names, checked.

    Raises:
        ValueError: a name that is not in `legal`.
    """
    chosen = list(names)
    for name in chosen:
        if name not in legal:
            raise ValueError(f"unknown {kind} {name!r}; choose from: {', '.join(legal)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
