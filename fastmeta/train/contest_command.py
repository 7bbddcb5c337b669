"""The command `fastmeta compare`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .config import PARTS, Execution
from .contest import Contest, entries
from .families.registry import FAMILIES
from .flags import add_options, given
from .methods.registry import METHODS
from .run_config import from_values

_VARIED = ("shots", "unlabelled")
"""Settings of which a contest takes several values."""


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    # a contest has one score an entry, mixed one a source
    tasks = [n for n, family in FAMILIES.items() if family.evaluation == "trained network" and n != "mixed"]
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--algorithms", nargs="+", choices=tuple(METHODS), metavar="NAME", default=tuple(METHODS),
                        help=f"of {', '.join(METHODS)}; default: all that fit the task")  # fmt: skip
    parser.add_argument("--data", nargs="+", metavar="PATH", default=(), help="what to train on, see fastmeta list")
    parser.add_argument("--test-data", nargs="+", metavar="PATH", default=(), help="what to score on; default: --data")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="X", help="of training, each; default: 60")
    parser.add_argument("--shots", nargs="+", type=int, metavar="N", help="support samples of a task, per class")
    parser.add_argument("--unlabelled", nargs="+", type=float, metavar="X",
                        help="shares of support samples without label in training, of metagan")  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help="default: runs/compare-TASK")
    kinds = [family.settings_type for name, family in FAMILIES.items() if name in tasks]
    only = ("ways", "queries", "model", "channels", "meta_batch", "seed", "episodes", "inner_steps", "eval_steps")
    add_options(parser, "of all runs (default: of each algorithm's preset)", *kinds, *PARTS.values(), only=only)


def compare(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """Train several algorithms for the same time on the same tasks, and score all on the same unseen ones.

    Every algorithm starts from its own preset. What is finished is kept: the same command goes on after a kill.
    """
    family = FAMILIES[arguments.task]
    names = [name for name in arguments.algorithms if family.percent or not METHODS[name].classifies]
    if len(names) < len(arguments.algorithms) and arguments.algorithms != tuple(METHODS):
        unfit = [name for name in arguments.algorithms if name not in names]
        raise ValueError(f"{', '.join(unfit)} classify, and the tasks of {arguments.task} have no classes")
    vary: Mapping[str, Any] = {name: values for name in _VARIED if (values := getattr(arguments, name))}
    changes = given(arguments, family.settings_type, *PARTS.values())
    if "fewest_ways" in changes:
        raise ValueError(
            f"--ways must be one number here, got the range {changes['fewest_ways']}:{changes['ways']}: algorithms are "
            "compared on tasks of one size"
        )
    contest = Contest(
        entries(names, arguments.task, changes={n: v for n, v in changes.items() if n not in vary}, vary=vary),
        folder=Path(arguments.out or f"runs/compare-{arguments.task}"),
        seconds=arguments.seconds,
        data=arguments.data,
        test_data=arguments.test_data,
        execution=from_values(Execution, given(arguments, Execution)),
        say=partial(print, flush=True),
    )
    stopped = contest.run()
    if stopped:
        print(f"resume with: {shlex.join(['fastmeta', *argv])}")
        return 128 + stopped
    paths = contest.write()
    print(contest.table())
    print(f"written: {', '.join(map(str, paths))}")
    return 0
