"""What is shipped, what importing costs, and which module may import which."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("fastmeta", "kernels", "setup.py", "pyproject.toml", "README.md", "LICENSE")
TOP_LEVEL = {
    *("fastmeta", "kernels", "bench", "tests", "docs"),
    *("setup.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"),
}
FOLDERS = ("fastmeta", "kernels", "bench", "tests")


def run_python(*arguments: str, cwd: Path) -> str:
    """Standard output of a fresh interpreter; its standard error is shown when it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what packaging reads, so that no build leftovers reach the repository or come from it."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    return copy


def modules_in(checkout: Path) -> set[str]:
    """Paths, inside a wheel, of every Python file of the two source folders."""
    library = {path.relative_to(checkout).as_posix() for path in (checkout / "fastmeta").rglob("*.py")}
    kernels = {f"fastmeta/kernels/{path.name}" for path in (checkout / "kernels").glob("*.py")}
    return library | kernels


def test_wheel_holds_both_packages(checkout: Path, tmp_path: Path):
    out = tmp_path / "wheels"
    run_python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), ".", cwd=checkout)
    (wheel,) = out.glob("fastmeta-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.endswith(".py")} == modules_in(checkout)
    assert {"fastmeta/__init__.py", "fastmeta/kernels/__init__.py", "fastmeta/py.typed"} <= names
    assert not any(name.startswith(("kernels/", "tests/", "bench/")) for name in names)


def test_editable_install_finds_both_packages(checkout: Path, tmp_path: Path):
    site = tmp_path / "site"
    site.mkdir()
    build = f"from setuptools.build_meta import build_editable; build_editable({str(site)!r})"
    run_python("-c", build, cwd=checkout)
    (wheel,) = site.glob("fastmeta-*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    # -S keeps an installed fastmeta out: the folder under test goes first, and only its .pth is read; the
    # environment's own folders follow for torch.
    paths = [entry for entry in sys.path if entry.endswith("site-packages")]
    code = (
        f"import sys, site; site.addsitedir({str(site)!r}); sys.path.extend({paths!r}); "
        "import fastmeta, fastmeta.kernels; print(fastmeta.__file__); print(fastmeta.kernels.__file__)"
    )
    found = [Path(line) for line in run_python("-I", "-S", "-c", code, cwd=tmp_path).split()]
    assert found == [checkout / "fastmeta/__init__.py", checkout / "kernels/__init__.py"]


def test_version_is_the_same_everywhere():
    import fastmeta

    text = (ROOT / "fastmeta/__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{fastmeta.__version__}"' in text
    assert re.fullmatch(r"\d+\.\d+\.\d+", fastmeta.__version__)
    assert run_python("setup.py", "--version", cwd=ROOT).split()[-1] == fastmeta.__version__


def test_import_does_no_work(tmp_path: Path):
    code = """
import json, os, sys, threading, torch
loaded, environment, state = set(sys.modules), dict(os.environ), torch.get_rng_state()
import fastmeta
new = set(sys.modules) - loaded
print(json.dumps({
    "imported": "fastmeta" in new,
    "optional": sorted(new & {"triton", "matplotlib", "PIL", "tqdm", "fastmeta.kernels"}),
    "environment": dict(os.environ) == environment,
    "random": torch.equal(torch.get_rng_state(), state),
    "dtype": str(torch.get_default_dtype()),
    "threads": threading.active_count(),
}))
"""
    lines = run_python("-W", "error", "-c", code, cwd=tmp_path).splitlines()
    assert len(lines) == 1, "importing fastmeta printed something"
    seen = json.loads(lines[0])
    assert seen == {
        "imported": True,
        "optional": [],
        "environment": True,
        "random": True,
        "dtype": "torch.float32",
        "threads": 1,
    }
    assert list(tmp_path.iterdir()) == []


def test_top_level_holds_only_what_belongs_there():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the project is not known")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    top = {line.split("/")[0] for line in files}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_kernels_folder_is_flat():
    """A folder below kernels/ would be missing from wheels: setup.py lists the one package."""
    folders = {path.name for path in (ROOT / "kernels").iterdir() if path.is_dir()}
    assert folders <= {"__pycache__"}


def test_readme_commands_name_existing_extras():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- (main|test)-command -->\n```bash\n(.+)\n```", text)
    assert [name for name, _ in blocks] == ["main", "test"]
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for _, command in blocks:
        (extras,) = re.findall(r"\[(.+?)\]", command)
        assert all(f'"{extra}":' in setup for extra in extras.split(","))
