"""What `python -m bench gpu` leaves: one tar of all results and logs, and beside it the summary and the table."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .gpu_steps import Step
from .gpu_table import table
from .records import load, without_folders, write

TAR_BYTES = 15_500_000
"""A file of 16 MB is as much as one may hope to carry away."""
FAILURES = 40
"""Failed tests that a summary names."""
_BLOCK, _ENDING = 512, 10_240  # of a tar


class Folder:
    """The folder that steps write to, and the one where all of it is kept.

    Results are `gpu-STEP.json` in the first, as they belong to `bench/results`; what is no result lies under `logs`.
    """

    def __init__(self, work: Path, out: Path, command: str) -> None:
        self._work, self._out, self._name = work, out, f"gpu-{command}"
        (work / "logs").mkdir()
        out.mkdir(parents=True, exist_ok=True)

    def out_of(self, name: str, step: Step) -> Path:
        """The file that a step writes."""
        return self._work / f"gpu-{name}.json" if step.measures else self._work / "logs" / f"{name}.out"

    def log_of(self, name: str) -> Path:
        """The file that what it prints goes to."""
        return self._work / "logs" / f"{name}.log"

    def _environment(self) -> dict[str, Any] | None:
        """Of a step that saw the GPU, which the command itself does not touch."""
        for path in self._work.glob("gpu-*.json"):
            with suppress(ValueError, KeyError):
                if "gpu" in (where := load(path)["environment"]):
                    return where
        return None

    def keep(self, result: Mapping[str, Any]) -> str:
        """Writes summary, table and tar anew; the table."""
        logs = self._work / "logs"
        where = self._environment() or result["environment"]
        summary = {**result, "environment": where, "tests": {file.stem: tests for file in sorted(logs.glob("*.out"))
                                       if (tests := tests_of(file)) is not None}}  # fmt: skip
        text = table(summary, self._work)
        _replace(self._out / f"{self._name}.md", text)
        own, page = self._work / f"{self._name}.json", self._work / f"{self._name}.md"
        page.write_text(text, encoding="utf-8")
        write(summary, own)
        results = sorted(self._work.glob("gpu-*.json"), key=lambda path: path.stat().st_size)
        first = [own, page, *(path for path in results if path != own)]
        left_out = pack(
            first + sorted(path for path in logs.iterdir() if path.suffix != ".part"),
            self._work,
            self._out / f"{self._name}.tar",
        )
        write({**summary, "left out of the tar": left_out}, self._out / f"{self._name}.json")
        return text


def pack(files: Iterable[Path], root: Path, tar: Path) -> list[str]:
    """A tar of the files, the first ones first, written whole or not at all; the names of those that are too large."""
    left_out: list[str] = []
    room = TAR_BYTES - _ENDING
    part = tar.with_name(tar.name + ".part")
    with tarfile.open(part, "w") as archive:
        for path in files:
            entry = tarfile.TarInfo(str(path.relative_to(root)))
            if path.stat().st_size > room:
                left_out.append(entry.name)
                continue
            data = path.read_bytes()  # whole, as a step beside this may write it anew
            entry.size, size = len(data), _BLOCK + -(-len(data) // _BLOCK) * _BLOCK
            if size > room:
                left_out.append(entry.name)
                continue
            entry.mtime = int(time.time())
            archive.addfile(entry, BytesIO(data))
            room -= size
    os.replace(part, tar)
    return left_out


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def tests_of(path: Path) -> dict[str, Any] | None:
    """Counts and failures of a JUnit file; None where the file is none."""
    try:
        cases = [*ElementTree.parse(path).iter("testcase")]
    except (ElementTree.ParseError, OSError):
        return None
    failed = [(case, bad) for case in cases for bad in (*case.iter("failure"), *case.iter("error"))]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(failed) - skipped,
        "failed": len(failed),
        "skipped": skipped,
        "failures": [
            {"test": case.get("name", ""), "message": without_folders(bad.get("message", "").strip())}
            for case, bad in failed[:FAILURES]
        ],
    }
