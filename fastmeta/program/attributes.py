"""A module's Python attributes, as they were before its forward ran on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

_CONTAINERS = (dict, list, set, SimpleNamespace)
_LEVELS = 3


class Attributes:
    """A copy of what modules and the containers in them hold."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._holders: dict[int, tuple[Any, Any]] = {}
        for m in modules:
            self._keep(vars(m), _LEVELS)

    def _keep(self, holder: Any, levels: int) -> None:
        if isinstance(holder, SimpleNamespace):
            holder = vars(holder)
        if id(holder) in self._holders:
            return
        self._holders[id(holder)] = (holder, holder.copy())
        if levels:
            for value in holder.values() if isinstance(holder, dict) else holder:
                if isinstance(value, _CONTAINERS):
                    self._keep(value, levels - 1)

    def restore(self) -> None:
        """Puts back all that changed."""
        for holder, before in self._holders.values():
            if not _same(holder, before):
                holder.clear()
                holder.extend(before) if isinstance(holder, list) else holder.update(before)

    def history(self) -> str:
        """The name of an attribute that the forward left with another plain value than it had: a counter, a flag."""
        for holder, before in self._holders.values():
            if isinstance(holder, dict):
                for name, value in holder.items():
                    old = before.get(name)
                    if value is not old and _plain(value) and _plain(old) and (type(value), value) != (type(old), old):
                        return str(name)
        return ""


@contextmanager
def attributes_kept(*modules: nn.Module) -> Iterator[Attributes]:
    """Puts all attributes of these modules and their submodules back at the end."""
    kept = Attributes([m for module in modules for m in module.modules()])
    try:
        yield kept
    finally:
        kept.restore()


def _same(holder: Any, before: Any) -> bool:
    if len(holder) != len(before):
        return False
    if isinstance(holder, dict):
        return list(holder) == list(before) and all(
            a is b for a, b in zip(holder.values(), before.values(), strict=True)
        )
    return all(a is b for a, b in zip(holder, before, strict=True)) if isinstance(holder, list) else holder == before


def _plain(value: Any) -> bool:
    return not isinstance(value, (Tensor, nn.Module, *_CONTAINERS)) and type(value).__module__ == "builtins"
