"""The options of `python -m bench`: a function for each command. Nothing here imports torch."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from .names import ALGORITHMS, AXES, DEVICES, OTHERS, PRECISIONS, TARGETS
from .workloads import WORKLOADS

PERCEPTRONS_AND_SIREN = ("sinusoid-k1", "sinusoid", "sinusoid-10k", "siren-64")
"""What `kernels --target` compiles by default: a minute or two, where networks on images take several each."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command, its options, and `command` beside them."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="fastmeta beside its peers.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (about, add) in COMMANDS.items():
        add(commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}."))
    return parser.parse_args(arguments)


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


def _run(run: argparse.ArgumentParser) -> None:
    run.add_argument("--workload", nargs="+", metavar="NAME", help="default: all that fit the device")
    run.add_argument(
        "--algorithm", nargs="+", choices=(*ALGORITHMS, *OTHERS), default=["maml"],
        help="default: maml; each takes those of the workloads that it is for",
    )  # fmt: skip
    run.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default: %(default)s)")
    run.add_argument("--budget", type=float, default=10, help="seconds of timing for a peer (default: %(default)s)")
    run.add_argument(
        "--patience", type=float, default=400, help="seconds after which a first call is given up (default: 400)"
    )
    _peers(run)
    _machine(run)


def _scaling(scaling: argparse.ArgumentParser) -> None:
    scaling.add_argument("--workload", default="sinusoid", metavar="NAME", help="default: %(default)s")
    scaling.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES), help="default: all")
    scaling.add_argument("--values", nargs="+", type=int, help="of the axis, ascending (default: five)")
    scaling.add_argument("--algorithm", choices=ALGORITHMS, default="maml")
    scaling.add_argument(
        "--memory-limit", type=float, default=8, metavar="GIB", help="of a peer on a CPU (default: %(default)s)"
    )
    scaling.add_argument("--step-limit", type=float, default=1, help="seconds of a step that end an axis (default: 1)")
    scaling.add_argument("--time-limit", type=float, default=120, help="seconds of a peer and axis (default: 120)")
    _peers(scaling)
    _machine(scaling)


def _train(train: argparse.ArgumentParser) -> None:
    train.add_argument("--run", nargs="+", choices=("sinusoid", "omniglot"), default=["sinusoid", "omniglot"])
    train.add_argument("--path", nargs="+", choices=("eager", "compiled", "triton"), help="default: all")
    train.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: %(default)s)")
    _machine(train)


def _before_after(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("--before", type=Path, required=True, metavar="DIR", help="a checkout of fastmeta")
    compare.add_argument("--after", type=Path, metavar="DIR", help="another (default: this one)")
    compare.add_argument(
        "--workload", nargs="+", metavar="NAME", default=["sinusoid", "sinusoid-1k", "omniglot-5w1s"],
        help="default: sinusoid sinusoid-1k omniglot-5w1s",
    )  # fmt: skip
    compare.add_argument("--algorithm", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), help="default: all")
    compare.add_argument("--path", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    compare.add_argument("--rounds", type=int, default=15, help="alternating rounds (default: %(default)s)")
    compare.add_argument("--device", choices=DEVICES, default="cpu", help="default: %(default)s")
    compare.add_argument("--threads", type=int, default=1, help="of every library (default: %(default)s)")
    compare.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    compare.add_argument("--out", type=Path, help="result file, JSON")


def _loop(loop: argparse.ArgumentParser) -> None:
    loop.add_argument("--model", nargs="+", metavar="NAME", help="a wrong name prints all (default)")
    loop.add_argument("--algorithm", nargs="+", choices=("maml", "fomaml"), default=["maml", "fomaml"])
    loop.add_argument("--steps", nargs="+", type=int, default=[1, 2], metavar="K", help="default: 1 2")
    loop.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: %(default)s)")
    loop.add_argument("--budget", type=float, default=10, help="seconds of timing for each side (default: %(default)s)")
    loop.add_argument("--device", choices=DEVICES, default="cpu", help="default: %(default)s")
    loop.add_argument("--threads", type=int, default=1, help="of every library (default: %(default)s)")
    loop.add_argument("--out", type=Path, help="result file, JSON")


def _report(report: argparse.ArgumentParser) -> None:
    report.add_argument("files", nargs="+", type=Path)
    report.add_argument("--figures", type=Path, metavar="DIR", help="write PNG figures there")
    report.add_argument("--out", type=Path, metavar="FILE", help="write the tables there; default: print them")
    report.add_argument("--readme", type=Path, metavar="FILE", help="put the summary between its bench marks")


def _predict(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("--workload", nargs="+", metavar="NAME", help="default: the three on images")
    predict.add_argument("--processes", type=int, help="default: one a core")
    predict.add_argument("--out", type=Path, help="result file, JSON")


def _kernels(kernels: argparse.ArgumentParser) -> None:
    names = ", ".join(WORKLOADS)
    kernels.epilog = (
        "With --target: registers, stack, shared memory, programs a multiprocessor holds, matrix instructions and "
        "widths of global accesses, for every kernel and precision; the exit status is 1 where one spills, asks for "
        "more shared memory than there is, or multiplies in another precision than asked for. With --count, which "
        "runs in Triton's interpreter: launches of a meta-step, bytes asked for, moved, distinct and compulsory, and "
        "FLOP; on images, from what one image takes. With --peak-memory: bytes alive at once in a meta-step of exact "
        "MAML and of first-order MAML. With --host: microseconds of Python in a meta-step, with launches that do "
        f"nothing. Workloads: {names}."
    )
    what = kernels.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", choices=TARGETS, help="compile every kernel for this architecture")
    what.add_argument("--count", metavar="WORKLOAD", help="launches, bytes and FLOP of one meta-step")
    what.add_argument("--peak-memory", metavar="WORKLOAD", help="bytes alive at once, exact and first-order MAML")
    what.add_argument("--host", metavar="WORKLOAD", help="Python's time in one meta-step")
    kernels.add_argument(
        "--workload", nargs="+", metavar="NAME", default=list(PERCEPTRONS_AND_SIREN),
        help=f"what to compile; default: {' '.join(PERCEPTRONS_AND_SIREN)}",
    )  # fmt: skip
    kernels.add_argument(
        "--precision", choices=PRECISIONS, help="default: float32 of what is counted, all of what is compiled"
    )
    kernels.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _gpu(gpu: argparse.ArgumentParser) -> None:
    gpu.add_argument("--out", type=Path, required=True, metavar="DIR", help="one tar, its summary and its table")
    gpu.add_argument("--second", action="store_true", help="what comes after a look at the first command's results")
    gpu.add_argument("--part", nargs="+", metavar="NAME", help="these steps alone; a wrong name prints all")
    gpu.add_argument("--limit", type=float, default=350, help="seconds of all steps together (default: %(default)s)")
    gpu.add_argument("--commit", metavar="HASH", help="of this checkout, where git's folder does not travel with it")
    gpu.add_argument("--wheels", type=Path, metavar="DIR", help="wheels of further peers, unpacked for this run")
    gpu.add_argument("--device", choices=DEVICES, default="cuda", help="cpu: does every step start and end?")
    gpu.add_argument("--quick", action="store_true", help="tiny sizes, as on a CPU")


def _learned_optimizer(learned: argparse.ArgumentParser) -> None:
    learned.add_argument("--iterations", type=int, help="batches of training functions (default: 800, three minutes)")
    learned.add_argument("--seed", type=int, default=0, help="of weights and functions (default: %(default)s)")
    learned.add_argument("--threads", type=int, default=1, help="of every library (default: %(default)s)")
    learned.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    learned.add_argument("--out", type=Path, help="result file, JSON")
    learned.add_argument("--figure", type=Path, metavar="FILE", help="picture of the losses, PNG")
    learned.epilog = "The exit status is 1 where a tuned optimiser ends as low as the learned one."


def _peers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--peer", nargs="+", metavar="NAME", help="a wrong name prints all; default: most")
    command.add_argument("--precision", choices=PRECISIONS, default="float32")


def _machine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=DEVICES, default="cpu")
    command.add_argument("--threads", type=int, help="of every library (default: 2; all cores beside a GPU)")
    command.add_argument("--quick", action="store_true", help="tiny sizes: does everything run and pass its gate?")
    command.add_argument("--out", type=Path, help="result file, JSON")


COMMANDS = {
    "run": ("time meta-steps, each peer checked before it is timed", _run),
    "scaling": ("time and memory over tasks, inner steps and width", _scaling),
    "train": ("whole training steps, and the share of them outside the engine", _train),
    "before-after": ("time meta-steps of two checkouts of fastmeta in turn", _before_after),
    "loop": ("time meta-steps of real networks beside the plain loop over tasks", _loop),
    "report": ("Markdown tables and figures of result files", _report),
    "predict": ("meta-steps on a GPU that is not there; takes minutes", _predict),
    "kernels": ("figures of the Triton kernels, without a GPU", _kernels),
    "learned-optimizer": ("meta-train a learned optimiser, beside tuned SGD, RMSprop and Adam", _learned_optimizer),
    "gpu": ("what needs a GPU, in two commands of six minutes", _gpu),
}
"""What each command is for, and what adds its options."""
