"""What is shipped, what importing costs, and which module may import which."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("fastmeta", "kernels", "setup.py", "pyproject.toml", "README.md", "LICENSE")
TOP_LEVEL = {
    *("fastmeta", "kernels", "bench", "tests"),
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


# --- imports follow the flow: module -> Program -> engine -> ops or kernels ---


def imports_of(source: str, package: str) -> set[str]:
    """Every dotted name a file of `package` imports; `from a import b` gives both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def touches(imports: set[str], *packages: str) -> list[str]:
    """The imports that lie in one of the packages."""
    return sorted(name for name in imports if any(name == p or name.startswith(p + ".") for p in packages))


def module_name(path: str) -> str:
    """The name that a file, relative to the root, is imported by."""
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"fastmeta.{name}" if path.startswith("kernels/") else name


def source_files() -> Iterator[tuple[str, set[str]]]:
    """Every Python file of the project as (path relative to the root, what it imports)."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            package = module_name(f"{path.parent.relative_to(ROOT).as_posix()}/__init__.py")
            yield name, imports_of(path.read_text(encoding="utf-8"), package)


# place -> modules of fastmeta that it must not know ("": none at all)
FORBIDDEN = {
    # the truth shares no code with what it judges
    "fastmeta/reference.py": ("",),
    "fastmeta/ops/": ("kernels", "backends", "engine", "program", "algorithms", "reference"),
    "kernels/": ("backends", "engine", "algorithms", "reference", "ops"),
}


@pytest.mark.parametrize("place", FORBIDDEN)
def test_imports_follow_the_flow(place: str):
    files = [(path, imports) for path, imports in source_files() if path == place or path.startswith(place)]
    if not files:
        pytest.skip(f"{place} does not exist yet")
    forbidden = [f"fastmeta.{name}".rstrip(".") for name in FORBIDDEN[place]]
    assert {path: found for path, imports in files if (found := touches(imports, *forbidden))} == {}


def test_library_does_not_import_what_sits_on_top():
    """Nothing that `import fastmeta` may ever load, lazily too, is part of the main job."""
    files = {module_name(path): imports for path, imports in source_files()}
    library, pending = set(), {"fastmeta"}
    while pending:
        library |= pending
        pending = {name for module in pending for name in files[module] if name in files} - library
    assert "fastmeta.algorithms" in library
    assert touches(library, "fastmeta.tasks", "fastmeta.train", "fastmeta.cli") == []


def test_only_backends_knows_ops_and_kernels():
    both = [
        path
        for path, imports in source_files()
        if path.startswith(("fastmeta/", "kernels/"))
        and touches(imports, "fastmeta.ops")
        and (path.startswith("kernels/") or touches(imports, "fastmeta.kernels"))
    ]
    assert set(both) == {"fastmeta/backends.py", "fastmeta/triton_backend.py"}


def test_nobody_imports_the_folder_kernels():
    wrong = {path: found for path, imports in source_files() if (found := touches(imports, "kernels"))}
    assert wrong == {}


def test_import_reader_sees_every_form():
    source = "import a.b as c\nfrom d import e\ndef f():\n    from kernels.g import h\n"
    assert imports_of(source, "fastmeta") == {"a.b", "d", "d.e", "kernels.g", "kernels.g.h"}
    assert touches(imports_of(source, "fastmeta"), "kernels") == ["kernels.g", "kernels.g.h"]
    assert imports_of("from .base import Op", "fastmeta.ops") == {"fastmeta.ops.base", "fastmeta.ops.base.Op"}
    assert imports_of("from .. import inner", "fastmeta.ops") == {"fastmeta", "fastmeta.inner"}
