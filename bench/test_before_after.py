"""Two checkouts in turn: which is which, what a ratio is, and failures that are results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from . import before_after, environment
from .before_after import ratios
from .report import section


def checkout(folder: Path, *, change: tuple[str, str] | None = None) -> Path:
    """This checkout again, without git, and with one line of MAML changed where wanted."""
    for name in ("fastmeta", "kernels"):
        shutil.copytree(environment.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if change is not None:
        path = folder / "fastmeta/__init__.py"
        old, new = change
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
    return folder


def run(before: Path, after: Path, out: Path | None = None, **options):
    quick = {"workloads": ["sinusoid"], "algorithms": ["maml"], "paths": ["eager"], "rounds": 2}
    return before_after.run(
        before=before, after=after, out=out, device="cpu", threads=1, small=True, **{**quick, **options}
    )


def test_a_ratio_is_of_medians_and_its_range_of_rounds():
    found = ratios([2.0, 4.0, 3.0], [3.0, 3.0, 6.0])
    assert (found["ratio"], found["ratio min"], found["ratio max"]) == (1.0, 0.75, 2.0)


def test_two_checkouts_are_timed_in_turn(tmp_path: Path):
    result = run(checkout(tmp_path / "old"), environment.ROOT, tmp_path / "x.json", algorithms=["maml", "reptile"])
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == result
    assert result["commits"] == {"before": "unknown", "after": environment.commit_of()}
    rows = result["before after"]
    assert [(row["workload"], row["algorithm"], row["path"], row["status"]) for row in rows] == [
        ("sinusoid-small", "maml", "eager", "ok"),
        ("sinusoid-small", "reptile", "eager", "ok"),
    ]
    for row in rows:
        assert len(row["before ms"]) == len(row["after ms"]) == 2
        assert row["ratio min"] <= row["ratio max"]
        assert row["difference"] == 0
    assert "| sinusoid-small (T=2, N=10, M=10, K=2) | reptile | eager |" in section(result)


def test_a_side_that_fails_or_does_something_else_is_a_row(tmp_path: Path):
    """The checkout before has no Reptile, and its MAML is of first order."""
    line = "from fastmeta.algorithms.maml import FOMAML, MAML\n"
    old = checkout(tmp_path, change=(line, line.replace("FOMAML, MAML", "FOMAML, FOMAML as MAML")))
    path = old / "fastmeta/__init__.py"
    text = path.read_text(encoding="utf-8").replace("from fastmeta.algorithms.reptile import Reptile\n", "")
    path.write_text(text.replace(', "Reptile"]', "]"), encoding="utf-8")
    result = run(old, environment.ROOT, algorithms=["maml", "fomaml", "reptile"])
    maml, fomaml, reptile = result["before after"]
    assert (maml["status"], fomaml["status"], reptile["status"]) == ("differs", "ok", "failed")
    assert maml["difference"] > 1e-3
    assert "has no attribute 'Reptile'" in reptile["message"]
    assert reptile["message"].startswith("before: ")
    text = section(result)
    assert ", too much |" in text
    assert "| failed: before: " in text


def test_what_is_no_checkout_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="--before must be a checkout of fastmeta"):
        run(tmp_path, environment.ROOT)
