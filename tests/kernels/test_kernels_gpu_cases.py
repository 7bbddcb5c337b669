"""The cases of the tests on a GPU, as far as a machine without one can tell."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")

from fastmeta.kernels import launch
from test_kernels_gpu import OWN, Case, failures, in_short_form, launch_all, table

RUN_BY = {"loop": "mlp_loop", "layers": "linear", "conv": "conv_block and linear"}


@pytest.mark.parametrize("case", [case for case in table() if in_short_form(case)], ids=lambda case: case.id)
def test_the_kernels_take_a_case_and_are_launched_as_it_says(case):
    stages = set()

    def seen(_, __, ___, ____, options):
        if "PRECISION" in options:
            stages.add(options.get("num_stages", OWN))

    with launch.through(seen):
        learner = launch_all(case)
    assert stages
    assert case.stages == OWN or case.stages in stages
    kind, _, _ = case.table.partition(" ")
    assert f"Triton kernels of {RUN_BY[kind]}\n" in learner.explain()


def compiles(case, target, share):
    if case.name == "adam" and share == 2:
        raise RuntimeError(f"{target}: out of registers")
    if case.name == "maml":
        os._exit(1)


def test_a_case_whose_kernels_do_not_compile_is_one_case():
    adam, maml, other = (Case("conv options", name, "tf32", OWN) for name in ("adam", "maml", "batches"))
    found = failures([other, adam, maml], "sm_90", compiles)
    assert found == {adam: "RuntimeError: sm_90: out of registers", maml: "its process ended with status 1"}
