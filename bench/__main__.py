"""Command line of the benchmark. Modules that import torch come after the limit on threads is set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from bench import environment


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Three commands: run, memory, report."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="fastmeta beside its peers.")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="time meta-steps, each peer checked before it is timed")
    run.add_argument("--workload", nargs="+", metavar="NAME", help="default: all")
    run.add_argument("--algorithm", choices=("maml", "fomaml"), default="maml")
    run.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default: %(default)s)")
    run.add_argument("--budget", type=float, default=60, help="seconds of timing for a peer (default: %(default)s)")
    run.add_argument("--quick", action="store_true", help="tiny sizes: does everything run and pass its gate?")

    memory = commands.add_parser("memory", help="peak memory of one meta-step, each in a process of its own")
    memory.add_argument("--workload", default="omniglot-5w1s", metavar="NAME", help="default: %(default)s")
    memory.add_argument("--steps", nargs="+", type=int, default=[1, 10], help="inner steps K (default: 1 10)")

    for command in (run, memory):
        command.add_argument("--peer", nargs="+", metavar="NAME", help="peers to measure")
        command.add_argument("--threads", type=int, default=2, help="of every library (default: %(default)s)")
        command.add_argument("--out", type=Path, help="result file, JSON")

    report = commands.add_parser("report", help="Markdown tables of result files")
    report.add_argument("files", nargs="+", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; user errors print one line and give status 2."""
    options = parse(arguments)
    try:
        return report(options) if options.command == "report" else measure(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def report(options: argparse.Namespace) -> int:
    """Print the tables."""
    from bench.report import report as tables

    print(tables(options.files))
    return 0


def measure(options: argparse.Namespace) -> int:
    """Run a measuring command and print its tables."""
    environment.limit_threads(options.threads)
    from bench import memory, run
    from bench.peers import PEERS
    from bench.report import section
    from bench.workloads import WORKLOADS

    if options.command == "memory":
        peers = known("peer", options.peer or memory.DEFAULT_PEERS, PEERS)
        (workload,) = known("workload", [options.workload], WORKLOADS)
        result = memory.run(
            workload=workload, peers=peers, steps=options.steps, threads=options.threads, out=options.out
        )
    else:
        result = run.run(
            workloads=known("workload", options.workload or WORKLOADS, WORKLOADS),
            peers=known("peer", options.peer or PEERS, PEERS),
            algorithm=options.algorithm,
            rounds=options.rounds,
            budget_s=options.budget,
            small=options.quick,
            threads=options.threads,
            out=options.out,
        )
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
