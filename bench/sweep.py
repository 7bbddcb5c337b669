"""Loads ahead of their products (`num_stages`) and warps of the kernels: every pair checked, then timed.

Tiles are no choice here: they are one rule's, a perceptron's by its warps. Its loops read what they wrote, so their
stages are no choice either: the compiler makes the same code of 1, 2 and 3. Kernels are launched through one function
(`kernels/launch.py`), in whose place a pair of numbers is put here, for all kernels that multiply. Processes side by
side compile all pairs first, to Triton's cache: compiling takes longer than measuring. A pair whose code is another's
is not timed again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from . import device as devices
from . import environment
from .compile_ahead import PRELOADED, compile_share, shares_of, this_target
from .gate import Gate, make_gate
from .names import PRECISIONS
from .part import parser_of, skip_on_cpu
from .peers import PEERS
from .problem import Problem
from .records import FORMAT, describe_error, write
from .timing import interleave
from .workloads import WORKLOADS

STAGES, WARPS = (1, 2, 3), (1, 4, 8)
SWEPT = ("sinusoid", "sinusoid-10k")
IMAGES = ("omniglot-20w1s", "mini-5w1s")
"""Swept where asked for. They have a hundred kernels to compile for each pair, so the pairs are fewer."""
IMAGE_WARPS = (4, 8)
STEPS = 20
PEER = "fastmeta triton"


class Config(NamedTuple):
    """None: what the kernels choose by themselves."""

    precision: str
    stages: int | None
    warps: int | None

    @property
    def forced(self) -> dict[str, int]:
        """Launch options."""
        own = {"num_stages": self.stages, "num_warps": self.warps}
        return {name: value for name, value in own.items() if value is not None}


def configs(workload: str) -> list[Config]:
    """The kernels' own choice first at each precision."""
    swept = itertools.product(STAGES, IMAGE_WARPS) if workload in IMAGES else itertools.product((None,), WARPS)
    pairs = [(None, None), *swept]
    return [Config(precision, *pair) for precision in PRECISIONS for pair in pairs]


@contextmanager
def warps_of_perceptrons(warps: int | None) -> Iterator[None]:
    """Inside, a perceptron's program has so many warps, and the tiles for them; None: its own choice."""
    from fastmeta.kernels import tiles  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    rule = tiles.loop_warps
    if warps is not None:
        tiles.loop_warps = lambda *_: warps
    try:
        yield
    finally:
        tiles.loop_warps = rule


@contextmanager
def launched_with(config: Config) -> Iterator[dict[str, list[Any]]]:
    """Inside, hot kernels have the config's stages and warps; the dict takes pairs of CUDA events by kernel."""
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    events: dict[str, list[Any]] = {}

    def run(kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        hot = "PRECISION" in options  # it multiplies
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        made = before(kernel, label, grid, args, {**options, **config.forced} if hot else options)
        end.record()
        events.setdefault(kernel.__name__, []).append((start, end))
        return made

    with warps_of_perceptrons(config.warps), launch.through(run) as before:
        yield events


Codes = Mapping[tuple[str, Config], str]
"""What the kernels of a workload's meta-step are compiled to, as one word; only of pairs that compiled whole."""


def compile_with(name: str, config: Config, target: str, *, share: int, of: int) -> dict[str, Any]:
    """`compile_share` of a pair, whose warps choose a perceptron's tiles as well."""
    with warps_of_perceptrons(config.warps):
        return compile_share(WORKLOADS[name], config.precision, target, share=share, of=of, forced=config.forced)


def compile_ahead(names: Sequence[str], target: str, limit_s: float) -> dict[tuple[str, Config], str]:
    """Compiles the kernels of all pairs side by side, for what they leave in Triton's cache."""
    from fastmeta.kernels.side_by_side import side_by_side  # pyright: ignore[reportMissingImports]

    jobs = [(name, config, share, shares_of(WORKLOADS[name])) for name in names for config in configs(name)
            for share in range(shares_of(WORKLOADS[name]))]  # fmt: skip
    calls = [partial(compile_with, name, config, target, share=share, of=of) for name, config, share, of in jobs]
    parts: dict[tuple[str, Config], list[dict[str, Any]]] = {}
    for done in side_by_side(calls, limit_s=limit_s, preload=PRELOADED):
        name, config, *_ = jobs[done.place]
        parts.setdefault((name, config), []).append(done.result or {"codes": {}, "failed": {"": done.failure}})
    return {key: word for key, shares in parts.items() if (word := _word(shares))}


def _word(shares: Sequence[Mapping[str, Any]]) -> str:
    """The hashes of a meta-step's kernels in order; empty where one did not compile."""
    if any(share["failed"] for share in shares):
        return ""
    codes = {int(place): code for share in shares for place, code in share["codes"].items()}
    return " ".join(codes[place] for place in sorted(codes))


def same_code(workload: str, config: Config, codes: Codes) -> Config | None:
    """An earlier pair of the same precision that was compiled to the same code."""
    own = codes.get((workload, config))
    earlier = itertools.takewhile(lambda other: other != config, configs(workload))
    alike = (other for other in earlier if codes.get((workload, other)) == own and other.precision == config.precision)
    return next(alike, None) if own else None


def _step(workload: str, config: Config) -> Any:
    sized = WORKLOADS[workload].sized_for("cuda")
    return PEERS[PEER](Problem.of(sized, device="cuda", precision=config.precision))


def a_step(launches: list[float], steps: int) -> float:
    """The median over steps of what a step's launches take together; each step has as many."""
    each = len(launches) // steps
    return sorted(sum(launches[i * each : (i + 1) * each]) for i in range(steps))[steps // 2]


def measure(workload: str, config: Config, gate: Gate) -> dict[str, Any]:
    """Milliseconds of a meta-step, microseconds of each kernel's launches in it, medians; none at a red gate."""
    row: dict[str, Any] = {"workload": workload, **config._asdict()}
    try:
        with launched_with(config) as events:
            step = _step(workload, config)
            row["error"] = gate.error(step())
            row["allowed"] = gate.bound
            if not row["error"] <= gate.bound:
                return row | {"message": f"meta-gradient off by {row['error']:.1e}"}
            timing = interleave({"step": step}, rounds=7, budget_s=1, wait=torch.cuda.synchronize)["step"]
            if isinstance(timing, Exception):
                raise timing
            events.clear()
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize()
            row["ms"] = 1e3 * sorted(timing)[len(timing) // 2]
            row["us"] = {
                name: a_step([1e3 * a.elapsed_time(b) for a, b in pairs], STEPS) for name, pairs in events.items()
            }
    except Exception as error:  # a failure is its result
        row["message"] = describe_error(error)
    return row


def main() -> None:
    """Compile side by side, then measure one after another; the file is rewritten after every row."""
    parser = parser_of("Stages and warps of the kernels.")
    parser.add_argument("--workload", nargs="+", choices=(*SWEPT, *IMAGES), default=SWEPT)
    parser.add_argument("--compile-limit", type=float, default=60, help="seconds (default: %(default)s)")
    options = parser.parse_args()
    skip_on_cpu(options.device, "the sweep needs a GPU: Triton's interpreter has neither stages nor warps")
    devices.check_device("cuda")
    result: dict[str, Any] = {"format": FORMAT, "environment": environment.describe("cuda"), "sweep": []}
    write(result, options.out)
    start = time.perf_counter()
    codes = compile_ahead(options.workload, this_target(), options.compile_limit)
    result["compile s"] = round(time.perf_counter() - start, 1)
    for workload in options.workload:
        for row in measured(workload, codes):
            result["sweep"].append(row)
            write(result, options.out)


def measured(workload: str, codes: Codes) -> Iterator[dict[str, Any]]:
    """A row for every pair."""
    gates: dict[str, Gate | Exception] = {}
    for config in configs(workload):
        row = {"workload": workload, **config._asdict()}
        same = same_code(workload, config, codes)
        if same is not None:
            yield row | {"same code as": [same.stages, same.warps]}
            continue
        if config.precision not in gates:
            try:
                sized = WORKLOADS[workload].sized_for("cuda")
                gates[config.precision] = make_gate(sized, device="cuda", precision=config.precision)
            except Exception as error:  # this precision's rows say it
                gates[config.precision] = error
        gate = gates[config.precision]
        if isinstance(gate, Exception):
            yield row | {"message": describe_error(gate)}
        else:
            yield measure(workload, config, gate)


if __name__ == "__main__":
    main()
