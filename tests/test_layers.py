"""Imports run one way: every module of the project lies in one layer, and knows only what stands below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fastmeta", "kernels", "bench", "tests")

# Place -> the places that it may know, beside itself. A place is a module or a package with all that is in it; the
# longest that fits a module is its own. The list is complete: a module without a place fails, and so does a place
# without a module.
LAYERS: dict[str, tuple[str, ...]] = {
    "fastmeta.internals": (),
    "fastmeta.cache": (),
    "fastmeta.inner_step": (),
    "fastmeta.stateless": ("fastmeta.inner_step",),
    "fastmeta.trajectories": (),
    "fastmeta.trees": (),
    "fastmeta.implicit": (),
    "fastmeta.reference": (
        *("fastmeta.stateless", "fastmeta.inner_step", "fastmeta.trees", "fastmeta.implicit"),
    ),  # no code of what it judges
    "fastmeta.kernels": (),
    "fastmeta.ops": (),
    "fastmeta.optim": (),
    "fastmeta.models": (),
    "fastmeta.tasks": ("fastmeta.trajectories", "fastmeta.cache"),
    "fastmeta.program": ("fastmeta.ops", "fastmeta.stateless", "fastmeta.inner_step"),
    "fastmeta.engine": (
        "fastmeta.program",
        "fastmeta.ops",
        "fastmeta.optim",
        "fastmeta.stateless",
        "fastmeta.inner_step",
    ),
    "fastmeta.engine.backends": (
        *("fastmeta.engine", "fastmeta.program", "fastmeta.ops", "fastmeta.optim"),
        *("fastmeta.kernels", "fastmeta.reference", "fastmeta.stateless", "fastmeta.implicit", "fastmeta.cache"),
    ),
    "fastmeta.engine.planning": (
        *("fastmeta.engine", "fastmeta.engine.backends", "fastmeta.program", "fastmeta.reference"),
    ),
    "fastmeta.engine.trial": (
        *("fastmeta.engine", "fastmeta.engine.backends", "fastmeta.engine.planning"),
        *("fastmeta.program", "fastmeta.ops", "fastmeta.internals"),
    ),
    "fastmeta.engine.proof": (
        *("fastmeta.engine", "fastmeta.engine.planning", "fastmeta.engine.trial"),
        *("fastmeta.program", "fastmeta.ops", "fastmeta.optim"),
    ),
    "fastmeta.engine.kernel_proof": (
        *("fastmeta.engine", "fastmeta.engine.backends", "fastmeta.engine.trial", "fastmeta.program"),
    ),
    "fastmeta.engine.auto": (
        *("fastmeta.engine", "fastmeta.engine.backends", "fastmeta.engine.proof", "fastmeta.engine.kernel_proof"),
        "fastmeta.program",
    ),
    "fastmeta.engine.ladder": (
        *("fastmeta.engine", "fastmeta.engine.backends", "fastmeta.engine.planning", "fastmeta.engine.proof"),
        *("fastmeta.engine.auto", "fastmeta.program", "fastmeta.inner_step"),
    ),
    "fastmeta.engine.session": (
        *("fastmeta.engine", "fastmeta.engine.backends", "fastmeta.engine.ladder"),
        *("fastmeta.program", "fastmeta.optim"),
    ),
    "fastmeta.engine.explain": (
        *("fastmeta.engine", "fastmeta.engine.backends", "fastmeta.engine.session"),
        *("fastmeta.program", "fastmeta.ops"),
    ),
    "fastmeta.algorithms": (
        "fastmeta.engine.ladder",
        *("fastmeta.engine", "fastmeta.engine.session", "fastmeta.engine.explain", "fastmeta.optim"),
        "fastmeta.inner_step",
        "fastmeta.trajectories",
    ),
    "fastmeta": ("fastmeta.algorithms", "fastmeta.optim", "fastmeta.trajectories"),
    "fastmeta.doctor": (  # looks at what runs a program
        *("fastmeta", "fastmeta.engine", "fastmeta.engine.auto", "fastmeta.engine.backends", "fastmeta.models"),
        "fastmeta.cache",
    ),
    "fastmeta.train": (
        *("fastmeta", "fastmeta.algorithms", "fastmeta.optim", "fastmeta.tasks", "fastmeta.models"),
        "fastmeta.doctor",
    ),
    "fastmeta.__main__": ("fastmeta.train",),
}


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


def place_of(module: str) -> str | None:
    """The longest place of LAYERS that holds a module."""
    fits = [place for place in LAYERS if module == place or (module.startswith(place + ".") and place != "fastmeta")]
    return max(fits, key=len, default=None)


def edges() -> dict[str, set[str]]:
    """Module of the library -> the modules of it that it imports, wherever in the file."""
    files = {module_name(path): imports for path, imports in source_files()}
    library = {name for name in files if name.partition(".")[0] == "fastmeta"}
    return {name: {i for i in files[name] if i in library and i != name} for name in library}


EDGES = edges()


def test_every_module_has_a_place_and_every_place_a_module():
    places = {module: place_of(module) for module in EDGES}
    assert [module for module, place in places.items() if place is None] == []
    assert set(places.values()) == set(LAYERS)


@pytest.mark.parametrize("place", LAYERS)
def test_imports_follow_the_flow(place: str):
    legal = {place, "fastmeta.internals", *LAYERS[place]}  # what torch hides, anyone may ask for there
    wrong = {
        f"{module} -> {imported}"
        for module, imports in EDGES.items()
        if place_of(module) == place
        for imported in imports
        if place_of(imported) not in legal
    }
    assert wrong == set()


def test_no_circle_between_places_or_modules():
    of_places = {place: set(legal) for place, legal in LAYERS.items()}
    assert circle(of_places) == []
    # a package's own __init__ is known by all that is in it, and imports what it re-exports
    assert circle({m: {i for i in imports if not m.startswith(i + ".")} for m, imports in EDGES.items()}) == []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names that lie on circles of a graph, or behind one; [] where there is none."""
    left = {name: {n for n in names if n in graph} for name, names in graph.items()}
    while free := [name for name, names in left.items() if not names & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_import_fastmeta_loads_no_application_tasks_or_networks():
    library, pending = set(), {"fastmeta"}
    while pending:
        library |= pending
        pending = {name for module in pending for name in EDGES[module]} - library
    assert "fastmeta.algorithms.base" in library
    assert touches(library, "fastmeta.tasks", "fastmeta.train", "fastmeta.models") == []


def test_only_backends_know_ops_and_kernels():
    both = {
        module
        for module, imports in EDGES.items()
        if touches(imports, "fastmeta.ops") and touches(imports, "fastmeta.kernels")
    }
    assert both <= {module for module in EDGES if place_of(module) == "fastmeta.engine.backends"}
    assert both


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]


def print_graph() -> None:
    """`python tests/test_layers.py`: which place imports which."""
    for place in LAYERS:
        known = {place_of(i) for module, imports in EDGES.items() if place_of(module) == place for i in imports}
        print(f"{place} -> {', '.join(sorted(filter(None, known - {place}))) or '-'}")  # noqa: T201


def test_nobody_imports_the_folder_kernels():
    wrong = {path: found for path, imports in source_files() if (found := touches(imports, "kernels"))}
    assert wrong == {}


def test_import_reader_sees_every_form():
    source = "import a.b as c\nfrom d import e\ndef f():\n    from kernels.g import h\n"
    assert imports_of(source, "fastmeta") == {"a.b", "d", "d.e", "kernels.g", "kernels.g.h"}
    assert touches(imports_of(source, "fastmeta"), "kernels") == ["kernels.g", "kernels.g.h"]
    assert imports_of("from .base import Op", "fastmeta.ops") == {"fastmeta.ops.base", "fastmeta.ops.base.Op"}
    assert imports_of("from .. import inner", "fastmeta.ops") == {"fastmeta", "fastmeta.inner"}


if __name__ == "__main__":
    print_graph()
