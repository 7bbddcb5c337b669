"""What the benchmark's tests share: one thread, and compiled code that is kept from run to run."""

from __future__ import annotations

import os
from pathlib import Path

# Read when torch or Triton are imported, and by what tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{Path(__file__).resolve().parents[1]}/.pytest_cache/torchinductor")
os.environ.setdefault("FASTMETA_CACHE", f"{Path(__file__).resolve().parents[1]}/.pytest_cache/fastmeta")
os.environ.setdefault("TRITON_CACHE_DIR", f"{Path(__file__).resolve().parents[1]}/.pytest_cache/triton")

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Networks of a dozen units lose more to a second thread than they win."""
    torch.set_num_threads(1)
