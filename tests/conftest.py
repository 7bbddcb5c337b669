"""What all tests share: seeds, the golden cases, and memory that is poisoned before it is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import golden_cases
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"

torch.set_num_threads(2)
if not torch.cuda.is_available():  # Triton reads it when kernels are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    # torch.compile's and forward-mode autograd's own imports, the first time they are used
    deprecated = r"`torch\.jit\.script(_method)?` is (deprecated|not supported)"
    config.addinivalue_line("filterwarnings", f"ignore:{deprecated}:DeprecationWarning")
    config.addinivalue_line("markers", 'golden(pattern): which golden cases a test takes, such as "conv4*"')


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `golden` runs once for every golden case that its `golden` marker admits."""
    if "golden" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("golden")
    pattern = marker.args[0] if marker else "*"
    names = golden_cases.names(pattern)
    if not names:
        raise pytest.UsageError(f"{metafunc.function.__name__}: no golden case matches {pattern!r}")
    metafunc.parametrize("golden", names, indirect=True)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> golden_cases.Case:
    """One golden case: `case.spec`, `case["support_x"]`, `case.model()`, `case.grad`, `case.adapted`."""
    (case,) = golden_cases.cases(request.param)
    return case


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, which holds files of public data sets."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not here")
    return SHARED


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that whatever reads an element nobody wrote shows it."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
            fresh = allocate(*args, **kwargs)
            with torch.no_grad():
                return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

        return wrapper

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poisoned(getattr(torch.Tensor, name)))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` threads of operations inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks of a dozen units lose more to a second thread than they win."""
    with threads(1):
        yield


@pytest.fixture
def three_threads() -> Iterator[None]:
    """More than one, on whatever machine."""
    with threads(3):
        yield


@pytest.fixture
def wide_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of convolutions as large as what they are of: the interpreter takes its time by program, not by size."""
    from fastmeta.kernels import conv_stage, tiles  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    monkeypatch.setattr(conv_stage, "again_tiles", tiles.conv_weight_tiles)
    monkeypatch.setattr(tiles, "PIXEL_VALUES", 2**18)
    monkeypatch.setattr(tiles, "PROGRAMS", 1)
    monkeypatch.setattr(tiles, "_conv_rows", lambda dual: 4096)
    monkeypatch.setattr(tiles, "_depth", lambda precision: 4096)
    monkeypatch.setattr(tiles, "_taps_depth", lambda precision, taps, unit: min(tiles.block(taps * unit), 1024))
