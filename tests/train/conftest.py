"""Runs of the command line, one of each family, which its tests share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from command_line import RUNS, Run, short_stages, write_data

from fastmeta.train.cli import main


def _finished(family: str) -> Callable[[pytest.TempPathFactory], tuple[Path, Run]]:
    """A fixture of the session: the folder of a training, and what was printed."""

    @pytest.fixture(scope="session", name=f"finished {family}")
    def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
        folder, command = tmp_path_factory.mktemp(family), ["train", *RUNS[family]]
        write_data(folder, command)
        with short_stages(), chdir(folder), redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            assert main(command) == 0, err.getvalue()
        return folder, Run(command, out.getvalue(), err.getvalue())

    return finished


globals().update({f"_finished_{family}": _finished(family) for family in RUNS})


@pytest.fixture
def trained(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Run]:
    """A finished training by the name of its family: data and `runs/` are copied to where the test runs."""

    def trained(family: str) -> Run:
        folder, run = request.getfixturevalue(f"finished {family}")
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        return run

    monkeypatch.chdir(tmp_path)
    return trained
