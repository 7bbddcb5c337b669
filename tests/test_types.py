"""What a type checker knows of calls: results by name, and arguments that are not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SOURCE = """
import torch
import fastmeta

x = torch.ones(2, 3, 1)
maml = fastmeta.MAML(torch.nn.Linear(1, 1), inner_step=2)  # no such argument
out = maml(x, x, x, x)
loss: torch.Tensor = out.loss
out.los  # no such result
maml(x, x, query_z=x)  # no such argument
learners: fastmeta.Learners = maml.adapt(x, x).adapt_further(x, x, steps=2)
learners(x, 3)  # too many arguments
alone: torch.nn.Module = learners.module(0)
maml.inner_steps = "many"  # no number
fastmeta.MAML(torch.nn.Linear(1, 1), backend="cuda")  # no such backend
"""


def test_a_type_checker_finds_wrong_calls_and_nothing_else(tmp_path):
    program = shutil.which("pyright")
    if program is None:
        pytest.skip("pyright is not installed")
    file = tmp_path / "user.py"
    file.write_text(SOURCE)
    done = subprocess.run(
        [program, "--outputjson", "--pythonpath", sys.executable, str(file)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    found = {each["range"]["start"]["line"] for each in json.loads(done.stdout)["generalDiagnostics"]
             if each["severity"] == "error"}  # fmt: skip
    assert found == {i for i, line in enumerate(SOURCE.splitlines()) if "  # " in line}
