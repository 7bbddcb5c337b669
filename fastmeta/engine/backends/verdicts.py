"""What was found out about Triton kernels on a device, kept on disk: facts in JSON, nothing that runs when it is read.

One file a verdict, named after what it is about: device, versions, program, shapes, precision. Many processes may read
and write at once: a file is complete before it has its name, and what cannot be read counts as not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastmeta.cache import cache_folder

FORMAT = 1
MOST_FILES = 512
MOST_BYTES = 2**18
"""Of one file; what is longer was not written here."""

_HOUR = 3600.0

Facts = Mapping[str, Any]
"""What a verdict is about: strings, numbers, lists and dictionaries of them."""


class Compared(NamedTuple):
    """How far a result is from float64, relative to it; NaN where it is not finite.

    `torch` is how far torch ops in the same precision are; None: they are not compared.
    """

    name: str
    kernels: float
    torch: float | None
    allowed: float

    @property
    def wrong(self) -> bool:
        """Whether the kernels' is farther than it may be."""
        return not self.kernels <= self.allowed

    def line(self) -> str:
        """In words."""
        off = f"{self.kernels:.1e} off float64" if math.isfinite(self.kernels) else "not finite"
        beside = "" if self.torch is None else f"torch ops {self.torch:.1e}, "
        return f"{self.name} {off} ({beside}allowed {self.allowed:.1e})"


@dataclass(frozen=True)
class KernelVerdict:
    """Whether kernels run a program in torch ops' place, and what that was decided by.

    Attributes:
        taken: whether they do.
        why: one sentence.
        call: what was timed: "meta-step", "adaptation" or "query pass".
        date: of the trial, YYYY-MM-DD.
        failed: whether they do not because they raise or because their numbers are wrong.
        setting: what they were held against float64 on, in words.
        torch_s, kernels_s: seconds of one call; None where it was not timed.
        compared: their errors and torch ops'.
        from_disk: whether an earlier trial found it.
    """

    taken: bool
    why: str
    call: str
    date: str
    failed: bool = False
    setting: str = ""
    torch_s: float | None = None
    kernels_s: float | None = None
    compared: tuple[Compared, ...] = ()
    from_disk: bool = False

    @property
    def source(self) -> str:
        """When it was found, and whether now."""
        return f"found on {self.date}, read from the cache" if self.from_disk else f"found on {self.date}"

    def lines(self) -> list[str]:
        """Times and errors, for `explain()`."""
        times = [("Triton kernels", self.kernels_s), ("torch ops", self.torch_s)]
        known = [f"{name} {1e3 * s:.3g} ms" for name, s in times if s is not None]
        found = [f"one {self.call}: {', '.join(known)}"] if known else []
        if self.compared:
            found.append(f"kernels on {self.setting}: " + "; ".join(c.line() for c in self._shown()))
        return found

    def _shown(self) -> list[Compared]:
        """What is wrong, or all without what is single parameters'."""
        return [c for c in self.compared if c.wrong] or [c for c in self.compared if "'" not in c.name]

    def to_json(self) -> dict[str, Any]:
        """Without `from_disk`; numbers that are not finite as text."""
        entry = asdict(self)
        del entry["from_disk"]
        entry["compared"] = [
            [c.name, _or_text(c.kernels), None if c.torch is None else _or_text(c.torch), _or_text(c.allowed)]
            for c in self.compared
        ]
        return entry

    @classmethod
    def from_json(cls, entry: Any) -> KernelVerdict:
        """What `to_json` gave.

        Raises:
            TypeError, ValueError, KeyError: it is something else.
        """
        kinds = {"taken": bool, "why": str, "call": str, "date": str, "failed": bool, "setting": str}
        found: dict[str, Any] = {}
        for name, kind in kinds.items():
            if not isinstance(entry[name], kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {entry[name]!r}")
            found[name] = entry[name]
        for name in ("torch_s", "kernels_s"):
            found[name] = None if entry[name] is None else _number(entry[name])
        compared = tuple(
            Compared(str(name), _number(kernels), None if torch is None else _number(torch), _number(allowed))
            for name, kernels, torch, allowed in entry["compared"]
        )
        return cls(**found, compared=compared, from_disk=True)


def _or_text(x: float) -> float | str:
    return x if math.isfinite(x) else str(x)


def _number(x: Any) -> float:
    if x in ("nan", "inf", "-inf"):
        return float(x)
    if isinstance(x, bool) or not isinstance(x, int | float):
        raise TypeError(f"a number was expected, got {x!r}")
    return float(x)


class VerdictStore:
    """Verdicts on disk.

    Attributes:
        problem: why nothing can be kept; empty where it can, as far as that was tried.
    """

    def __init__(self) -> None:
        self.problem = ""
        try:
            self.folder: Path | None = cache_folder() / "verdicts"
        except RuntimeError as error:
            self.folder, self.problem = None, str(error)

    def _path(self, folder: Path, facts: Facts) -> Path:
        return folder / f"{digest(facts)}.json"

    def get(self, facts: Facts) -> KernelVerdict | None:
        """What is known of `facts`; None where nothing is, or nothing that can be read."""
        if self.folder is None:
            return None
        path = self._path(self.folder, facts)
        try:
            _check_private(self.folder)
            with path.open("rb") as file:
                text = file.read(MOST_BYTES + 1)
            entry = json.loads(text) if len(text) <= MOST_BYTES else {}
            if entry["format"] != FORMAT or entry["facts"] != _plain(facts):
                return None
            verdict = KernelVerdict.from_json(entry["verdict"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # those that were used last are kept
        return verdict

    def put(self, facts: Facts, verdict: KernelVerdict) -> None:
        """Keeps a verdict, or says in `problem` why it cannot be kept."""
        if self.folder is None:
            return
        entry = {"format": FORMAT, "verdict": verdict.to_json(), "facts": _plain(facts)}
        try:
            self._make(self.folder)
            _write(self._path(self.folder, facts), json.dumps(entry, indent=1, allow_nan=False))
            self.problem = ""
        except OSError as error:
            self.problem = str(error)
            return
        self._forget()

    def try_to_write(self) -> str:
        """Why nothing can be kept; empty where it can."""
        if self.folder is not None:
            self.problem = ""
            try:
                self._make(self.folder)
                with tempfile.TemporaryFile(dir=self.folder):
                    pass
            except OSError as error:
                self.problem = str(error)
        return self.problem

    @staticmethod
    def _make(folder: Path) -> None:
        """The folder, for its owner alone."""
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        for part in (folder.parent, folder):
            part.mkdir(mode=0o700, exist_ok=True)
        _check_private(folder)

    def files(self) -> list[tuple[Path, os.stat_result]]:
        """The verdicts that are there, those that were used last at the end."""
        return sorted(self._listed(".json"), key=lambda entry: entry[1].st_mtime)

    def _listed(self, suffix: str) -> Iterator[tuple[Path, os.stat_result]]:
        if self.folder is None:
            return
        try:
            paths = [path for path in self.folder.iterdir() if path.suffix == suffix]
        except OSError:
            return
        for path in paths:
            with contextlib.suppress(OSError):  # another process removes files too
                yield path, path.stat()

    def _forget(self) -> None:
        """Removes the oldest files where there are too many, and what writers left that were killed."""
        files = self.files()
        old = files[: len(files) - MOST_FILES + MOST_FILES // 8] if len(files) > MOST_FILES else []
        old += [entry for entry in self._listed(".tmp") if time.time() - entry[1].st_mtime > _HOUR]
        for path, _ in old:
            with contextlib.suppress(OSError):
                path.unlink()


def digest(facts: Facts) -> str:
    """A name for facts, the same in every process."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


def _plain(facts: Facts) -> Any:
    """As JSON gives them back."""
    return json.loads(json.dumps(facts))


def _check_private(folder: Path) -> None:
    """Raises OSError where others than this user could have written what is in the folder."""
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode):
        raise NotADirectoryError(f"{folder} is no folder")
    if not hasattr(os, "getuid"):
        return
    if state.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if state.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by other users, whose files are not trusted; remove it")
    if state.st_mode & 0o055:
        folder.chmod(0o700)


def _write(path: Path, text: str) -> None:
    """The file at once, or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
