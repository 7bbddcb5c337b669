"""Random programs by fastmeta and by a plain loop: the same numbers, or an error that is on a short list.

`pytest -m nightly tests/fuzz` runs thousands of them.
"""

from __future__ import annotations

import pytest
from blocks import GROUPS
from checks import check
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from programs import Program

whole = st.integers(0, 999)
BLOCK = st.integers(0, len(GROUPS) - 1).flatmap(
    lambda group: st.tuples(st.just(group), st.integers(0, len([*GROUPS.values()][group]) - 1))
)


def programs(blocks: int) -> st.SearchStrategy[Program]:
    """Of so many blocks at most."""
    return st.builds(
        Program, blocks=st.lists(BLOCK, min_size=1, max_size=blocks).map(tuple), loss=whole, outer=st.none() | whole,
        labels=st.booleans(), batch=whole, output=whole, order=whole, rule=whole, steps=st.sampled_from((1, 1, 2, 3)),
        options=st.integers(0, 2**15 - 1), seed=whole,
    )  # fmt: skip


def hold(count: int, seed: int, *, blocks: int) -> None:
    """So many programs, every other one without the proof: what is traced must be right, the proof is but a net."""

    @seeded(seed)
    @settings(
        max_examples=count, database=None, deadline=None, phases=(Phase.generate,),
        suppress_health_check=[*HealthCheck], print_blob=False,
    )  # fmt: skip
    @given(programs(blocks))
    def right(program: Program) -> None:
        outcome = check(program, proof="off" if program.seed % 2 else "first")
        assert outcome.verdict not in ("wrong", "raised"), f"{outcome}\n{program}\n{program.source()}"

    right()


@pytest.mark.parametrize("part", range(15))
def test_random_programs(part):
    hold(20, part, blocks=2)


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(50))
def test_many_random_programs(part):
    hold(100, 1000 + part, blocks=4)
