"""What keeps the suite fast and whole: the budget of a test, and the table of slow tests."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import slow_table
from budget import Budget, Cost, excess

pytest_plugins = ["pytester"]

SAMPLE = """
import time
import pytest

def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

@pytest.fixture(scope="module")
def shared():
    work(0.3)

@pytest.fixture
def shared_on_demand(request):
    return lambda: request.getfixturevalue("shared")

@pytest.fixture
def own():
    work(0.3)

def test_of_little(): pass
def test_of_a_shared_fixture(shared): pass
def test_that_works(): work(0.3)
def test_whose_fixture_works(own): pass
def test_that_sleeps(): time.sleep(0.6)
@pytest.mark.slow
def test_that_is_slow(): work(0.3)
def test_that_fails_anyway(): work(0.3); assert False
"""


def outcomes(pytester, source, **options):
    pytester.makepyfile(source)
    pytester.makeini("[pytest]\nmarkers = slow: of the table")
    run = pytester.inline_run("-p", "no:cacheprovider", plugins=[Budget(cpu=0.2, wall=0.5, **options)])
    passed, _, failed = run.listoutcomes()
    return {report.nodeid.split("::")[1] for report in passed}, {
        report.nodeid.split("::")[1]: report.longreprtext for report in failed
    }


def test_a_test_beyond_its_budget_fails(pytester):
    passed, failed = outcomes(pytester, SAMPLE, enforced=True)
    assert passed == {"test_of_little", "test_of_a_shared_fixture", "test_that_is_slow"}
    message = r"took 0\.\d s of processors and \d\.\d s by the clock; a test of the fast set has 0\.2 and 0\.5"
    for name in ("test_that_works", "test_whose_fixture_works", "test_that_sleeps"):
        assert re.search(message, failed[name]), failed[name]
    assert "assert False" in failed["test_that_fails_anyway"]


def test_a_shared_fixture_that_a_test_asks_for_is_nobodys(pytester):
    fixtures, _, _ = SAMPLE.partition("def test_of_little")
    source = fixtures + "def test_on_demand(shared_on_demand): shared_on_demand()"
    assert outcomes(pytester, source, enforced=True) == ({"test_on_demand"}, {})


def test_nothing_is_enforced_on_a_busy_machine(pytester):
    passed, failed = outcomes(pytester, SAMPLE, enforced=False)
    assert len(passed) == 6
    assert list(failed) == ["test_that_fails_anyway"]


def test_a_test_has_five_seconds():
    assert excess(Cost(4.9, 19.0)) is None
    assert "list it as slow in tests/conftest.py" in str(excess(Cost(5.1, 5.1)))
    assert excess(Cost(0.1, 21.0)) is not None


@pytest.fixture
def collected(pytester):
    """The tests of a file, and the folder it is in."""
    pytester.makepyfile(
        test_a="""
        import pytest
        @pytest.mark.parametrize("name", ["maml", "adam", "odd [7, 7]"])
        def test_options(name): pass
        class TestOf:
            def test_method(self): pass
    """
    )
    pytester.makeini("[pytest]\nmarkers = slow: of the table")
    items, _ = pytester.inline_genitems()
    return items, pytester.path


@pytest.mark.parametrize(
    "table, slow, problem",
    [
        ({"test_a.py::test_options": ("maml", "*7, 7]")}, ["adam"], None),
        ({"test_a.py::TestOf::test_method": ()}, ["test_method"], None),
        ({"test_a.py::test_options": ("maml", "sgd")}, ["adam", "odd [7, 7]"], "no parameters match 'sgd'"),
        ({"test_a.py::test_options": ("*",)}, [], "no test is slow"),
        ({"test_a.py::test_option": ()}, [], "there is no such test"),
        ({"test_b.py::test_options": ()}, [], "there is no such file"),
    ],
)
def test_the_table_marks_tests_and_notices_what_is_gone(collected, table, slow, problem):
    items, root = collected
    problems = slow_table.mark(items, table, root=root, whole=[root])
    marked = [item.name for item in items if item.get_closest_marker("slow")]
    assert [name.partition("[")[2].removesuffix("]") or name for name in marked] == slow
    assert problems == ([] if problem is None else [f"{next(iter(table))}: {problem}"])


def test_a_row_is_not_held_to_single_tests_of_its_file(collected):
    items, root = collected
    assert slow_table.mark(items[:1], {"test_a.py::TestOf::test_method": ()}, root=root, whole=[Path("other")]) == []


def test_what_pytorch_says_of_tf32_on_a_gpu_is_no_error():
    for words in (
        "Please use the new API settings to control TF32 behavior, such as torch.backends.cudnn.conv.fp32_precision",
        "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled. Consider setting ...",
    ):
        warnings.warn(words, UserWarning, stacklevel=1)
    with pytest.raises(UserWarning, match="anything else"):
        warnings.warn("anything else", UserWarning, stacklevel=1)
