"""What the benchmark's tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Networks of a dozen units lose more to a second thread than they win."""
    torch.set_num_threads(1)
