"""The workloads at reduced size under pytest-benchmark, to see regressions: `python -m pytest bench/speed.py`.

Its name keeps it out of `python -m pytest bench`, which judges the benchmark and not the machine. Save a state with
`--benchmark-save=NAME` or `--benchmark-autosave`, and hold another against it with `--benchmark-compare`; `-k` selects.
fastmeta's ways to run stand beside two of PyTorch's, which tell a slower fastmeta from a slower machine; the other
peers are in `python -m bench run`. What is red, missing or refuses is skipped with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .gate import make_gate
from .names import ALGORITHMS
from .peers import peers_for
from .problem import Problem
from .records import Row
from .report import OURS
from .run import admit
from .workloads import WORKLOADS

PEERS = ("autograd loop", "torch.func vmap", *(name for name in peers_for("cpu") if name.startswith(OURS)))

pytest.importorskip("pytest_benchmark", reason='needs pytest-benchmark: pip install "fastmeta[bench]"')


@pytest.mark.benchmark(max_time=0.2, min_rounds=5)  # a second for each of 189, the default, would be minutes
@pytest.mark.filterwarnings("default")  # of the peers and their compilers
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", [name for name in WORKLOADS if name not in ("sinusoid-1k", "sinusoid-10k")])
def test_meta_step(benchmark: Callable[[Any], Any], name: str, algorithm: str, peer: str) -> None:
    """One meta-step of at most 2 tasks, 10 queries and 2 steps, after the gate."""
    if name == "lora-gpt2":
        pytest.importorskip("peft")
    workload = WORKLOADS[name].sized_for("cpu").small()
    gate = make_gate(workload, algorithm=algorithm)
    row, step = admit(
        Row(name, {}, algorithm, peer, "ok", bound=gate.bound), Problem.of(workload, algorithm=algorithm), gate, 120
    )
    if step is None:
        pytest.skip(f"{row.status}: {row.message}")
    benchmark(step)
