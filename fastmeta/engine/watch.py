"""A look at a module before every call: its parameters, and everything else that a trace of it depends on."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from operator import is_
from typing import Any, NamedTuple

from torch import Tensor, nn

_PLAIN = frozenset({bool, int, float, str, type(None)})


class ModuleState(NamedTuple):
    """What was found.

    Two surveys with equal `key` make the same program: same submodules, training modes, hooks, plain attributes (a
    dropout's rate, a batch norm's eps, a user's temperature), and trainable and frozen tensors of the same kind.
    """

    key: Hashable
    trainable: list[nn.Parameter]  # θ in the order of `module.parameters()`, tied ones once
    names: tuple[str, ...]  # theirs


class _Seen(NamedTuple):
    """What a survey was made of."""

    modules: list[nn.Module]
    objects: list[Any]
    tensors: list[Tensor]
    kinds: list[Hashable]
    survey: ModuleState


class Watch:
    """Surveys of one module, call after call.

    While every object in the module is the one that was there at the last survey, and every tensor of the kind that it
    was, that survey itself comes back: 12 µs for 22 on a sinusoid's network, whose whole meta-step takes 400.
    """

    def __init__(self) -> None:
        self._last: _Seen | None = None

    def look(self, module: nn.Module) -> ModuleState:
        """The state of `module` now."""
        last = self._last
        if last is None or last.modules[0] is not module or _changed(last):
            modules = list(_walk(module, set()))
            tensors = [x for m in modules for x in _tensors(m)]
            last = _Seen(modules, _objects(modules), tensors, [_kind(x) for x in tensors], _state_of(modules))
            self._last = last  # at once: another thread may be looking
        return last.survey


def _changed(seen: _Seen) -> bool:
    objects = _objects(seen.modules)
    same = len(objects) == len(seen.objects) and all(map(is_, objects, seen.objects))
    return not same or [_kind(x) for x in seen.tensors] != seen.kinds


def _objects(modules: Sequence[nn.Module]) -> list[Any]:
    """All that a survey reads, or that holds something that it reads. Plain attributes cannot change in place."""
    objects: list[Any] = []
    for m in modules:
        objects += m.__dict__.values()
        objects += m._parameters.values()
        objects += m._buffers.values()
        objects += m._modules.values()
        objects += (len(m._forward_hooks), len(m._forward_pre_hooks))
    return objects


def _state_of(modules: Sequence[nn.Module]) -> ModuleState:
    key: list[Any] = []
    params: dict[int, nn.Parameter] = {}
    for m in modules:
        key += (id(m), len(m._forward_hooks), len(m._forward_pre_hooks))
        key += [v for v in m.__dict__.values() if v.__class__ in _PLAIN or (v.__class__ is tuple and _plain(v))]
        params |= {id(p): p for p in m._parameters.values() if p is not None}
        key += map(_kind, _tensors(m))
    # which names share one tensor
    key.append(tuple(params))
    names = tuple(name for name, p in modules[0].named_parameters() if p.requires_grad)
    return ModuleState(tuple(key), [p for p in params.values() if p.requires_grad], names)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [x for x in (*module._parameters.values(), *module._buffers.values()) if x is not None]


def _walk(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """As `module.modules()`, which takes ten times as long."""
    if id(module) not in seen:
        seen.add(id(module))
        yield module
        for child in module._modules.values():
            if child is not None:
                yield from _walk(child, seen)


def _plain(values: tuple[Any, ...]) -> bool:
    return all(v.__class__ in _PLAIN for v in values)


def _kind(t: Tensor) -> Hashable:
    return t.requires_grad, t.shape, t.dtype, t.device
