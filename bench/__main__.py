"""Command line of the benchmark. Modules that import torch come after the limit on threads is set."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import environment
from .names import PRECISIONS
from .options import known, parse
from .workloads import WORKLOADS, workloads_for


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; user errors print one line and give status 2."""
    options = parse(arguments)
    commands = {
        "run": run, "scaling": scaling, "train": train, "before-after": before_after, "loop": loop, "report": report,
        "predict": predict, "kernels": kernels, "gpu": gpu, "learned-optimizer": learned_optimizer,
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
    chosen = options.count or options.peak_memory or options.host
    known("workload", [chosen] if chosen else options.workload, WORKLOADS)
    if options.host:
        from .kernels.host import host

        print(json.dumps(host(options.host, options.precision or "float32"), indent=1, ensure_ascii=False))
        return 0
    if chosen:
        environment.interpret_kernels()
        from .kernels.counted import counts, text
        from .kernels.peak_memory import peak_memory

        row = (counts if options.count else peak_memory)(chosen, options.precision or "float32")
        print(json.dumps(row, indent=1) if options.json else text(row))
        return 0
    from .kernels.compiled import compiled, problems, table

    rows = compiled(options.target, options.workload, (options.precision,) if options.precision else PRECISIONS)
    print(json.dumps(rows, indent=1) if options.json else table(rows))
    wrong = problems(rows)
    for problem in wrong:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if wrong else 0


def gpu(options: argparse.Namespace) -> int:
    """Everything that needs a GPU."""
    from .gpu import Settings
    from .gpu import run as run_steps
    from .gpu_steps import EVERY, FIRST, SECOND

    steps = SECOND if options.second else FIRST
    command = "second" if options.second else "first"
    if options.part:
        steps = {name: EVERY[name] for name in known("part", options.part, EVERY)}
        command = "parts"
    settings = Settings(
        command, options.out, options.limit, device=options.device, quick=options.quick or options.device == "cpu",
        wheels=options.wheels, commit=options.commit,
    )  # fmt: skip
    return run_steps(steps, settings)


def run(options: argparse.Namespace) -> int:
    """Meta-steps beside the peers."""
    _prepare(options)
    from . import run as runner
    from .algorithms import REGISTRY
    from .peers import PEERS

    every = {**PEERS, **{name: None for algorithm in REGISTRY.values() for name in algorithm.rows()}}
    result = runner.run(
        workloads=known("workload", options.workload or workloads_for(options.device), WORKLOADS),
        peers=known("peer", options.peer, every) if options.peer else None,
        algorithms=options.algorithm,
        settings=runner.Settings(
            device=options.device, precision=options.precision, rounds=options.rounds, budget_s=options.budget,
            patience_s=options.patience, threads=options.threads, at_once=options.quick or options.device == "cuda",
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


def before_after(options: argparse.Namespace) -> int:
    """Two checkouts in turn."""
    names = known("workload", options.workload, WORKLOADS)
    environment.limit_threads(options.threads)
    from . import before_after as checkouts

    result = checkouts.run(
        before=options.before, after=options.after or environment.ROOT, workloads=names, algorithms=options.algorithm,
        paths=options.path, rounds=options.rounds, device=options.device, threads=options.threads, small=options.quick,
        out=options.out,
    )  # fmt: skip
    _show(result)
    return 0 if all(row["status"] == "ok" for row in result["before after"]) else 1


def loop(options: argparse.Namespace) -> int:
    """Real networks beside the plain loop."""
    environment.limit_threads(options.threads)
    environment.choose_device(options.device)
    from . import loop as plain
    from .loop_models import CASES

    result = plain.run(
        models=known("model", options.model or CASES, CASES), algorithms=options.algorithm, steps=options.steps,
        rounds=options.rounds, budget_s=options.budget, device=options.device, threads=options.threads,
        out=options.out,
    )  # fmt: skip
    _show(result)
    return 0 if all(row["status"] in ("ok", "skipped") for row in result["loop"]) else 1


def learned_optimizer(options: argparse.Namespace) -> int:
    """A learned optimiser beside tuned ones."""
    environment.limit_threads(options.threads)
    from . import learned_optimizer as learned

    settings = learned.Settings(seed=options.seed)
    if options.iterations is not None:
        settings = replace(settings, iterations=options.iterations)
    if options.quick:
        settings = replace(settings, iterations=2, steps=4, unroll=2, hidden=(4,), validation=8, tuning=8, testing=8)
    result = learned.run(settings, threads=options.threads, out=options.out, figure=options.figure)
    _show(result)
    return 0 if options.quick or set(learned.beaten(result)) == set(learned.PEERS) else 1


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


if __name__ == "__main__":
    sys.exit(main())
