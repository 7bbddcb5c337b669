"""The command line, and the names that it checks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastmeta import models

from . import environment
from .__main__ import main
from .names import TARGETS
from .networks import LOSSES, NETWORKS, sinusoid_mlp
from .options import COMMANDS, PERCEPTRONS_AND_SIREN, parse
from .workloads import NOT_TIMED, WORKLOADS, workloads_for


def test_no_library_is_imported_before_its_threads_are_limited():
    code = (
        "import sys, bench.__main__ as b; b.parse(['kernels', '--count', 'x']);"
        "print([m for m in ('numpy', 'torch', 'triton', 'fastmeta', 'jax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=environment.ROOT, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_itself(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        parse([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--out" in text or command == "kernels"
    assert COMMANDS[command][0][1:20] in " ".join(text.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["kernels", "--count", "omniglot"],
        ["kernels", "--peak-memory", "omniglot"],
        ["kernels", "--target", "sm_90", "--workload", "sinusoid", "omniglot"],
        ["before-after", "--before", ".", "--workload", "omniglot"],
    ],
)
def test_a_wrong_name_prints_the_right_ones(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    assert f"unknown workload 'omniglot'; choose from: {', '.join(WORKLOADS)}" in capsys.readouterr().err


def test_names_are_those_of_what_they_name():
    ahead_of_time = pytest.importorskip("fastmeta.kernels.ahead_of_time")
    assert tuple(ahead_of_time.TARGETS) == TARGETS
    assert {workload.network for workload in WORKLOADS.values()} == NETWORKS.keys()
    assert {workload.loss for workload in WORKLOADS.values()} == LOSSES.keys()
    assert {*PERCEPTRONS_AND_SIREN, *NOT_TIMED} < WORKLOADS.keys()
    assert not {*NOT_TIMED} & {*workloads_for("cpu"), *workloads_for("cuda")}


def test_the_perceptron_is_the_one_of_the_library():
    """Of any width here, as a scaling run goes over widths."""
    assert str(sinusoid_mlp(40)) == str(models.sinusoid_mlp())
