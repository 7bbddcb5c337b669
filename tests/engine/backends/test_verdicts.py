"""Verdicts on disk: what is kept is read again, by many processes at once, and what cannot be trusted is not."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fastmeta.cache import PLACE, cache_folder
from fastmeta.engine.backends import verdicts
from fastmeta.engine.backends.verdicts import Compared, KernelVerdict, VerdictStore

FACTS = {"device": {"name": "a GPU"}, "shapes": [[[3, 7, 2], "torch.float32"]], "rates": [(1, 1)]}
VERDICT = KernelVerdict(
    False, "Triton kernels are not used: their numbers are wrong", "meta-step", "2026-01-31", True, "tasks 0 and 2",
    2e-3, None, (Compared("losses", math.nan, 1e-7, 1.2e-5), Compared("mean losses", math.inf, None, 1e-5)),
)  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Where the cache is: a folder that is not there yet."""
    monkeypatch.setenv(PLACE, str(tmp_path / "a" / "cache"))
    return tmp_path / "a" / "cache"


def kept(facts=FACTS, verdict=VERDICT) -> Path:
    """The file of a verdict that was kept now."""
    store = VerdictStore()
    store.put(facts, verdict)
    assert store.problem == ""
    assert store.folder is not None
    return store.folder / f"{verdicts.digest(facts)}.json"


def test_what_is_kept_is_read_again(place):
    assert VerdictStore().get(FACTS) is None
    assert not place.exists(), "looking makes nothing"
    path = kept()
    found = VerdictStore().get(FACTS)
    assert found is not None
    assert found.from_disk
    assert found.source == "found on 2026-01-31, read from the cache"
    # NaN equals nothing
    assert repr(replace(found, from_disk=False)) == repr(VERDICT)
    assert "losses not finite (torch ops 1.0e-07, allowed 1.2e-05)" in "\n".join(found.lines())
    assert VerdictStore().get(FACTS | {"shapes": []}) is None
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, which JSON does not have


def test_nobody_else_reads_or_writes_it(place):
    path = kept()
    assert [stat.S_IMODE(p.stat().st_mode) for p in (place, path.parent, path)] == [0o700, 0o700, 0o600]
    path.parent.chmod(0o755)
    assert VerdictStore().get(FACTS) is not None
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_a_folder_that_others_can_write_is_not_trusted(mode):
    path = kept()
    path.parent.chmod(mode)
    store = VerdictStore()
    assert store.get(FACTS) is None
    store.put(FACTS, VERDICT)
    assert "can be written by other users" in store.problem
    assert "can be written by other users" in VerdictStore().try_to_write()


@pytest.mark.usefixtures("place")
def test_a_folder_of_another_user_is_not_trusted(monkeypatch):
    path = kept()
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    store = VerdictStore()
    assert store.get(FACTS) is None
    store.put(FACTS, VERDICT)
    assert "belongs to another user" in store.problem


@pytest.mark.usefixtures("place")
def test_a_link_in_the_folders_place_is_not_followed(tmp_path):
    path = kept()
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")
    assert VerdictStore().get(FACTS) is None


DAMAGED = {
    "empty": b"",
    "cut off": b'{"format": 1, "verdict": {"taken"',
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"3",
    "deep": b"[" * 100_000,
    "long": b" " * (verdicts.MOST_BYTES + 1) + b"{}",
}
CHANGED = {
    "another format": lambda entry: entry | {"format": 0},
    "other facts": lambda entry: entry | {"facts": {}},
    "no verdict": lambda entry: entry | {"verdict": None},
    "text for a flag": lambda entry: entry | {"verdict": entry["verdict"] | {"taken": "yes"}},
    "text for a time": lambda entry: entry | {"verdict": entry["verdict"] | {"torch_s": "fast"}},
    "a flag for a number": lambda entry: entry | {"verdict": entry["verdict"] | {"compared": [["a", True, 0, 0]]}},
    "short rows": lambda entry: entry | {"verdict": entry["verdict"] | {"compared": [["a", 0.0]]}},
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", [*DAMAGED, *CHANGED])
def test_what_is_damaged_counts_as_not_there_and_is_written_again(kind):
    path = kept()
    if kind in DAMAGED:
        path.write_bytes(DAMAGED[kind])
    else:
        path.write_text(json.dumps(CHANGED[kind](json.loads(path.read_text()))))
    assert VerdictStore().get(FACTS) is None
    kept()
    assert VerdictStore().get(FACTS) is not None


@pytest.mark.usefixtures("place")
def test_the_folder_stays_small(monkeypatch):
    monkeypatch.setattr(verdicts, "MOST_FILES", 8)
    first = kept({"number": -1})
    left = first.parent / ".abc.tmp"
    left.touch()
    fresh = first.parent / ".def.tmp"
    fresh.touch()
    os.utime(left, (0, time.time() - 7200))
    for number in range(20):
        os.utime(kept({"number": number}), (0, 1000 + number))
        os.utime(first, (0, 10))
        assert VerdictStore().get({"number": -1}) is not None  # what is used stays
    store = VerdictStore()
    assert len(store.files()) <= 8
    assert store.get({"number": 19}) is not None
    assert store.get({"number": 0}) is None
    assert store.get({"number": -1}) is not None
    assert not left.exists()
    assert fresh.exists()


# The module by itself, without torch: it starts in a tenth of a second.
PROCESS = """
import importlib.util, sys, types
from pathlib import Path
path, mine, start = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
sys.modules["fastmeta"] = package = types.ModuleType("fastmeta")
package.__path__ = [str(Path(path).parents[2])]
spec = importlib.util.spec_from_file_location("verdicts", path)
verdicts = sys.modules["verdicts"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(verdicts)
verdicts.MOST_FILES = 6
import time
while time.time() < start:
    pass
found = 0
for round in range(40):
    facts = {"number": round % 9}
    store = verdicts.VerdictStore()
    known = store.get(facts)
    if known is not None:
        assert known.why in {f"process {i}: " + "x" * 3000 for i in range(4)}, known
        found += 1
    store.put(facts, verdicts.KernelVerdict(True, f"process {mine}: " + "x" * 3000, "meta-step", "2026-01-31"))
    assert not store.problem, store.problem
print(found)
"""


def test_many_processes_at_once(place):
    command = [sys.executable, "-c", PROCESS, verdicts.__file__]
    start = str(time.time() + 0.5)
    running = [
        subprocess.Popen([*command, str(i), start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(4)
    ]
    ended = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0] * 4, ended
    assert sum(int(out) for out, _ in ended) > 0, "they read what others wrote"
    files = list((place / "verdicts").iterdir())
    assert len(files) <= 9
    assert {path.suffix for path in files} == {".json"}, "no writer left anything behind"


def test_the_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (PLACE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / ".cache" / "fastmeta"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "fastmeta"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fastmeta"
    monkeypatch.setenv(PLACE, "~/mine")
    assert cache_folder() == tmp_path / "mine"


def test_without_a_home_nothing_is_kept(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    for name in (PLACE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    store = VerdictStore()
    store.put(FACTS, VERDICT)
    assert store.get(FACTS) is None
    assert "home directory" in store.problem
    assert "home directory" in store.try_to_write()
