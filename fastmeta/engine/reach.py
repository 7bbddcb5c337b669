"""What a piece of Python code may read: the names in it, and whose code is looked into."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn

# The code of libraries, and of all that is installed, reads nothing that a user changes between calls but attributes
# of what it is handed. All attributes of their objects count, as nobody looks which of them are read. (Through all that
# a BERT's code mentions of transformers a walk takes seconds.)
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "triton", "fastmeta"}
# Those that run and log a training: what they hold changes at every step, and no forward depends on it.
_RUNNERS = frozenset(
    {
        *("lightning", "pytorch_lightning", "lightning_fabric", "accelerate", "ignite", "wandb", "mlflow", "hydra"),
        *("tensorboard", "tensorboardX", "tqdm", "pytest", "_pytest", "pluggy"),
    }
)
# Bases that hold nothing.
_BARE = frozenset({"abc", "typing", "typing_extensions", "enum"})
_INSTALLED = ("site-packages", "dist-packages")
# Standard classes that hold a user's settings; of the others (loggers, locks, files) an object counts by identity.
_HOLDERS = ("types", "argparse", "functools", "collections", "dataclasses")
_TORCH_HOLDERS = ("torch.nn.", "torch.distributions.")

# Whoever reads attributes by a name that is made up while it runs may read any.
_ANY_NAME = frozenset({"vars", "__dict__", "eval", "exec", "locals", "globals", "attrgetter", "__getattribute__"})
# Python calls these without their names being written anywhere, but not between the start and end of a forward.
_NOT_IN_A_CALL = frozenset(
    {
        *("__init__", "__new__", "__del__", "__repr__", "__str__", "__reduce__", "__reduce_ex__", "__getstate__"),
        *(
            "__setstate__",
            "__copy__",
            "__deepcopy__",
            "__init_subclass__",
            "__class_getitem__",
            "__sizeof__",
            "__dir__",
        ),
    }
)


class Names(NamedTuple):
    """Of one function, with the functions inside it."""

    names: frozenset[str]  # of variables, functions and attributes
    texts: frozenset[str]  # text that may be such a name, for getattr
    any: bool  # attributes are read by names that are not written there


@lru_cache(maxsize=4096)
def names_in(code: CodeType) -> Names:
    """The names that `code` mentions."""
    names, texts = set(code.co_names), set[str]()
    anything = not _ANY_NAME.isdisjoint(names) or ("getattr" in names and _gets_any(code))
    for value in code.co_consts:
        if isinstance(value, str) and value.isidentifier():
            texts.add(value)
        elif isinstance(value, CodeType):
            inside = names_in(value)
            names |= inside.names
            texts |= inside.texts
            anything = anything or inside.any
    return Names(frozenset(names), frozenset(texts), anything)


def _gets_any(code: CodeType) -> bool:
    """Whether a `getattr(x, name)` in `code` has another name than a text that is written there."""
    skipped = {"CACHE", "PUSH_NULL", "EXTENDED_ARG", "PRECALL", "KW_NAMES"}
    steps = [step for step in dis.get_instructions(code) if step.opname not in skipped]
    for i, step in enumerate(steps):
        if step.argval != "getattr":
            continue
        given: list[str] = []  # what each argument is loaded by
        for after in steps[i + 1 :]:
            if after.opname.startswith("CALL"):
                break
            if not after.opname.startswith("LOAD_") or after.opname == "LOAD_METHOD":
                return True
            if after.opname != "LOAD_ATTR" or not given:
                given += [after.opname] * after.opname.count("LOAD_")
            elif len(given) > 1:
                return True
        if len(given) < 2 or given[1] != "LOAD_CONST":
            return True
    return False


def is_library(name: Any) -> bool:
    """Whether a module of this name is PyTorch's, the standard library's, or of another installed package."""
    return isinstance(name, str) and _is_library(name.partition(".")[0])


@lru_cache(maxsize=1024)
def _is_library(package: str) -> bool:
    if package in _LIBRARIES:
        return True
    spec = getattr(sys.modules.get(package), "__spec__", None)
    places = (getattr(spec, "origin", None), *(getattr(spec, "submodule_search_locations", None) or ()))
    return any(place in str(path) for path in places for place in _INSTALLED)


def is_users(function: FunctionType) -> bool:
    """Whether the code of `function` was written outside the libraries; one that a decorator of theirs made was not."""
    return not is_library(function.__globals__.get("__name__"))


@lru_cache(maxsize=1024)
def users_classes(cls: type) -> tuple[type, ...]:
    """The classes that `cls` inherits from, itself first, without the libraries' own."""
    return tuple(c for c in cls.__mro__ if not is_library(c.__module__))


@lru_cache(maxsize=1024)
def is_opened(cls: type) -> bool:
    """Whether what an object of the class holds counts; else only which object it is."""
    if any(c.__module__.startswith("fastmeta.") for c in cls.__mro__):
        return False
    name = f"{cls.__module__}."
    package = name.partition(".")[0]
    if package not in _LIBRARIES:
        return package not in _RUNNERS
    return name.startswith(_TORCH_HOLDERS) or name.partition(".")[0] in _HOLDERS


@lru_cache(maxsize=1024)
def hides(cls: type) -> bool:
    """Whether an object of an opened class may hold more than its attributes show: a library's class is beneath."""
    plain = {*_BARE, *_HOLDERS}
    return any(is_library(c.__module__) and c is not object and c.__module__ not in plain for c in cls.__mro__)


@lru_cache(maxsize=1024)
def reads_any(cls: type) -> bool:
    """Whether any attribute of an object counts: code of a library may read it, or code that names no attributes."""
    plain = (object, nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
    for c in cls.__mro__:
        silent = c in plain or c.__module__ in _BARE or c.__module__.partition(".")[0] in _RUNNERS
        if is_library(c.__module__) and not silent:
            return True
    return any("__getattr__" in vars(c) or "__getattribute__" in vars(c) for c in users_classes(cls))


def read_of_class(cls: type, names: frozenset[str] | set[str] | None) -> Iterator[tuple[str, Any]]:
    """The members of a user's class that may be read: those in `names` (None: all), and what Python calls itself."""
    for name, value in vars(cls).items():
        if name.startswith("__") and name.endswith("__"):
            if isinstance(value, FunctionType) and name not in _NOT_IN_A_CALL:
                yield name, value
        elif names is None or name in names:
            yield name, value
