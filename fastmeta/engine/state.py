"""Everything that a forward or a loss may read beside its arguments: found, compared by value, and looked at again.

The walk starts at modules and functions and follows attributes, containers, closures, defaults, and the globals that
their code names. Of an object only attributes that some code reached by then mentions are followed, so that a trainer's
step counter or list of losses, at hand through a closure, makes no new plan. What is no plain value, container or
object of settings counts by identity: tensors, above all, as plans read the tensor itself.
"""

from __future__ import annotations

import enum
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from operator import attrgetter, is_
from types import BuiltinMethodType, CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .reach import hides, is_library, is_opened, is_users, names_in, read_of_class, reads_any, users_classes

MOST = 10_000
"""Values that one walk looks into; further ones count by identity."""
_MOST_BYTES = 2**20  # of an array that is compared whole; of a larger one some 4,096 values are

_PLAIN = frozenset({bool, int, str, bytes, type(None), type(...), torch.dtype, torch.device, torch.layout, range})
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_INTERNAL = frozenset(nn.Module().__dict__) - {"training"}
_START = frozenset({"forward", "__call__", "__wrapped__"})  # names that are read though no user's code mentions them


class Same:
    """Equal to another of the very same object, and to none once that is gone. Keeps it alive only where it must."""

    __slots__ = ("_id", "_object")

    def __init__(self, value: Any) -> None:
        self._id = id(value)
        try:
            self._object: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self._object = partial(_given, value)

    def __hash__(self) -> int:
        return self._id

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Same) or self._id != other._id:
            return False
        value = self._object()
        return value is not None and value is other._object()


class Key:
    """A long tuple that is hashed once."""

    __slots__ = ("_hash", "values")

    def __init__(self, values: tuple[Hashable, ...]) -> None:
        self.values, self._hash = values, hash(values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Key) and self._hash == other._hash and self.values == other.values)


class Found:
    """The state that a walk found, and what gives the same objects again while nothing changes."""

    def __init__(self) -> None:
        self.key = Key(())
        self.tree: list[nn.Module] = []  # the modules under the first root, where that is a module
        self.views: list[Iterable[Any]] = []  # of containers and of dictionaries
        self.picks: list[tuple[Callable[[str], Any], Sequence[str]]] = []  # entries that are read of a dictionary
        self.calls: list[Callable[[], Iterable[Any]]] = []
        self.owners: list[Any] = []  # of a __dict__
        self.empty: list[Any] = []  # dictionaries of hooks without any
        self.tensors: list[Tensor] = []
        self.arrays: list[np.ndarray[Any, Any]] = []
        self._seen: tuple[list[Any], list[Hashable], list[Hashable]] | None = None

    def _look(self) -> tuple[list[Any], list[Hashable], list[Hashable]]:
        objects = [*chain.from_iterable(self.views), *map(_dict_of, self.owners), *map(type, self.owners)]
        for get, names in self.picks:
            objects += map(get, names)
        for call in self.calls:
            objects += call()
        return objects, _kinds(self.tensors), [_content(x) for x in self.arrays]

    def remember(self, key: tuple[Hashable, ...]) -> None:
        """Takes down the state as it is now."""
        self.key = Key(key)
        with suppress(Exception):  # a user's own attribute access may raise anything; then every look is a new walk
            self._seen = self._look()

    def changed(self) -> bool:
        """Whether any object is another one than it was, or a tensor or array of another kind or content."""
        before = self._seen
        if before is None or any(self.empty):
            return True
        try:
            objects, kinds, contents = self._look()
        except Exception:  # an attribute that went
            return True
        same = len(objects) == len(before[0]) and all(map(is_, objects, before[0]))
        return not same or kinds != before[1] or contents != before[2]


def find(roots: Sequence[Any], *, by_name: nn.Module | None = None) -> Found:
    """The state behind `roots`. Buffers of `by_name` and of its submodules are read by name, whichever they are."""
    names, everything = set(_START), False
    while True:  # what is found may mention further names
        walk = _Walk(names, everything, by_name)
        found = walk.run(roots)
        if walk.mentioned == names and walk.everything == everything:
            return found
        names, everything = walk.mentioned, walk.everything


class _Walk:
    """One pass over all that can be reached, where attributes in `names` are followed."""

    def __init__(self, names: set[str], everything: bool, by_name: nn.Module | None) -> None:
        self._names: set[str] | None = None if everything else names
        self.mentioned, self.everything = set(names), everything
        self._numbers: dict[int, int] = {}  # id → how many were met before it
        self._queue: list[Any] = []  # all that was met: keeps ids from being given again
        self._left = MOST
        self._classes: set[type] = set()
        self._tree: set[int] = set()
        self._found = Found()
        if by_name is not None:
            self._found.tree = list(_modules(by_name, self._tree))

    def run(self, roots: Sequence[Any]) -> Found:
        """What is found from here."""
        key: list[Hashable] = [tuple(map(self._token, roots))]
        for value in self._queue:  # grows on the way
            try:
                key.append(self._inside(value))
            except Exception:  # a user's own attribute access may raise anything
                key.append(Same(value))
        self._found.remember(tuple(key))
        return self._found

    def _token(self, value: Any) -> Hashable:
        """A plain value with its type; of all else, a number under which its inside stands, or itself."""
        cls = type(value)
        if cls in _PLAIN:
            return cls, value
        if cls is float or cls is complex:
            return cls, repr(value)  # nan is itself, and 0.0 is not -0.0
        number = self._numbers.get(id(value))
        if number is not None:
            return number
        if not issubclass(cls, Tensor | nn.Module):  # of which the parameters' kinds must all be seen
            if self._left <= 0:
                return Same(value)
            self._left -= 1
        self._numbers[id(value)] = number = len(self._queue)
        self._queue.append(value)
        return number

    def _tokens(self, values: Iterable[Any]) -> tuple[Hashable, ...]:
        return tuple(map(self._token, values))

    def _inside(self, value: Any) -> Hashable:
        cls = type(value)
        if issubclass(cls, Tensor):
            self._found.tensors.append(value)
            return Same(value), kind(value)
        if issubclass(cls, nn.Module):
            return self._module(value)
        if issubclass(cls, dict | list | tuple | set | frozenset | deque | MappingProxyType):
            return self._container(value)
        if issubclass(cls, FunctionType):
            return self._function(value)
        if issubclass(cls, MethodType):
            return cls, self._token(value.__func__), self._token(value.__self__)
        if issubclass(cls, partial):
            parts = value.func, value.args, value.keywords, value.__dict__
            self._found.calls.append(lambda: (value.func, value.args, value.keywords))
            return cls, self._tokens(parts)
        if issubclass(cls, BuiltinMethodType) and not isinstance(value.__self__, ModuleType | type | None):
            return cls, value.__name__, self._token(value.__self__)
        if issubclass(cls, np.generic):
            return cls, value.dtype.str, value.tobytes()
        if issubclass(cls, np.ndarray):
            content = _content(value)  # raises for an array of objects
            self._found.arrays.append(value)
            return cls, content
        if issubclass(cls, ModuleType):
            return self._namespace(value)
        if issubclass(cls, type):
            return Same(value), self._class(value, whole=True)
        if issubclass(cls, enum.Enum) or not is_opened(cls):
            return Same(value)
        own = self._attributes(value), self._slots(value)
        which = Same(value) if hides(cls) or own == ((), ()) else None
        return cls, which, own, tuple(self._class(c) for c in users_classes(cls))

    def _container(self, value: Any) -> Hashable:
        cls, found = type(value), self._found
        if len(value) > self._left:
            return Same(value), len(value)
        own = self._attributes(value) if users_classes(cls) and hasattr(value, "__dict__") else ()
        if issubclass(cls, dict | MappingProxyType):
            base: Any = dict if issubclass(cls, dict) else MappingProxyType
            found.views += (base.keys(value), base.values(value))
            return cls, self._tokens(base.keys(value)), self._tokens(base.values(value)), own
        if issubclass(cls, set | frozenset):
            base = set if issubclass(cls, set) else frozenset
            found.calls.append(partial(base.__iter__, value))
            return cls, frozenset(map(_member, base.__iter__(value))), own
        base = next(c for c in (tuple, list, deque) if issubclass(cls, c))
        if base is not tuple:
            found.calls.append(partial(base.__iter__, value))
        return cls, self._tokens(base.__iter__(value)), own

    def _function(self, f: FunctionType) -> Hashable:
        found = self._found
        found.calls.append(lambda: (f.__code__, f.__defaults__, f.__kwdefaults__))
        cells = f.__closure__ or ()
        if cells:
            found.calls.append(lambda: map(_contents, cells))
        values = f.__defaults__, f.__kwdefaults__, *map(_contents, cells)
        key = Same(f), Same(f.__code__), self._tokens(values), self._attributes(f)
        if not is_users(f):
            return key
        code = names_in(f.__code__)
        self.mentioned |= code.names | code.texts
        self.everything = self.everything or code.any
        return *key, self._picked(f.__globals__, [name for name in code.names if name in f.__globals__])

    def _picked(self, values: Any, names: Iterable[str]) -> Hashable:
        """Some entries of a dictionary of names."""
        names = sorted(names)
        if names:
            self._found.picks.append((values.get, names))
        return tuple(names), self._tokens(map(values.get, names))

    def _attributes(self, owner: Any) -> Hashable:
        """Those in an object's `__dict__` that may be read."""
        values = getattr(owner, "__dict__", None)
        if not isinstance(values, dict) or (not values and isinstance(owner, FunctionType)):
            return ()
        self._found.owners.append(owner)
        self._found.views.append(dict.keys(values))
        names = self._names
        return self._picked(values, values if names is None or reads_any(type(owner)) else names & values.keys())

    def _slots(self, owner: Any) -> Hashable:
        names: list[str] = []
        for cls in users_classes(type(owner)):
            slots = vars(cls).get("__slots__", ())
            names += [slots] if isinstance(slots, str) else slots
        if not names:
            return ()

        def values() -> Iterator[Any]:
            return (getattr(owner, name, None) for name in names)

        self._found.calls.append(values)
        return self._tokens(values())

    def _class(self, cls: type, *, whole: bool = False) -> Hashable:
        """A user's class: the methods and attributes that may be read. `whole`: its objects may be made, too."""
        if cls in self._classes or is_library(cls.__module__):
            return ()
        self._classes.add(cls)
        names = [name for name, _ in read_of_class(cls, self._names)]
        if whole and isinstance(vars(cls).get("__init__"), FunctionType):
            names.append("__init__")
        bases = tuple(Same(base) for base in cls.__bases__)
        members = _unwrapped(vars(cls), names)
        self._found.picks.append((vars(cls).get, sorted(names)))
        return bases, tuple(sorted(names)), self._tokens(members)

    def _namespace(self, module: ModuleType) -> Hashable:
        """A Python module of the user's own, whose names are read as attributes."""
        values = vars(module)
        if is_library(values.get("__name__")):
            return Same(module)
        names = self._names if self._names is not None else self.mentioned
        return Same(module), self._picked(values, [name for name in values if name in names and name[:2] != "__"])

    def _module(self, m: nn.Module) -> Hashable:
        found, cls, values = self._found, type(m), m.__dict__
        found.owners.append(m)
        tensors, buffers, children = m._parameters.values(), m._buffers.values(), m._modules.values()
        found.views += (tensors, buffers, children)
        of_tensors: list[Hashable] = [self._tokens(tensors)]
        if id(m) in self._tree:  # plans read these by name
            given = [x for x in buffers if x is not None]
            found.tensors += given
            of_tensors.append(tuple(map(kind, given)))
        else:
            of_tensors.append(self._tokens(buffers))
        names = (tuple(m._parameters), tuple(m._buffers), tuple(m._modules))
        hooks: list[Hashable] = []
        for name in _HOOKS:
            if values[name]:
                hooks += (self._token(values[name]), values["_is_full_backward_hook"])
            else:
                found.empty.append(values[name])
        if self._names is None or reads_any(cls):
            found.views.append(values.values())
            read = [name for name in values if name not in _INTERNAL]
            own = tuple(read), self._tokens(values[name] for name in read)
        else:
            found.views.append(values.keys())
            # dictionaries of hooks and tensors may be replaced as a whole, as copies of a module do
            found.picks.append((values.get, (*_HOOKS, "_parameters", "_buffers", "_modules")))
            own = self._picked(values, ((self._names & values.keys()) - _INTERNAL) | {"training"})
        classes = tuple(self._class(c) for c in users_classes(cls))
        return Same(m), Same(cls), names, *of_tensors, self._tokens(children), tuple(hooks), own, classes


_kind = attrgetter("requires_grad", "shape", "dtype", "device")


def _kinds(tensors: list[Tensor]) -> list[Hashable]:
    """Of each tensor: at every call, where a function of Python's for each would be a third of the time."""
    try:
        return list(map(_kind, tensors))
    except RuntimeError:
        return list(map(kind, tensors))


def kind(t: Tensor) -> Hashable:
    """What of a tensor makes another plan, beside which tensor it is."""
    try:
        return _kind(t)
    except RuntimeError:  # a nested tensor has no shape
        return t.requires_grad, t.dtype, t.device


def _modules(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """As `module.modules()`, which takes ten times as long."""
    if id(module) not in seen:
        seen.add(id(module))
        yield module
        for child in module._modules.values():
            if child is not None:
                yield from _modules(child, seen)


def _member(value: Any) -> Hashable:
    """Of a set."""
    cls = type(value)
    return (cls, repr(value) if cls is float else value) if cls in _PLAIN or cls is float else Same(value)


def _content(x: np.ndarray[Any, Any]) -> Hashable:
    some = x
    if x.nbytes > _MOST_BYTES:
        some = x.reshape(-1)[:: max(1, x.size // 4096)] if x.flags.c_contiguous else x[:0]
    return (
        x.shape,
        x.dtype.str,
        id(x) if some is not x else 0,
        zlib.crc32(np.ascontiguousarray(some).view(np.uint8).data),
    )


def _unwrapped(members: Any, names: Iterable[str]) -> Iterator[Any]:
    """Members of a class as the functions or values that they stand for."""
    for name in sorted(names):
        value = members[name]
        if isinstance(value, property):
            yield value.fget
        elif isinstance(value, staticmethod | classmethod):
            yield value.__func__
        else:
            yield value


class _Empty(NamedTuple):
    """In place of the contents of a cell that has none yet."""


_EMPTY = _Empty()
_dict_of = attrgetter("__dict__")


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


def _given(value: Any) -> Any:
    return value
