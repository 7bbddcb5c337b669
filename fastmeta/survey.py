"""One walk over a module before every call: its parameters, and everything else that a trace of it depends on."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

_PLAIN = frozenset({bool, int, float, str, type(None)})


class Survey(NamedTuple):
    """What was found.

    Two surveys with equal `key` make the same program: same submodules, training modes, hooks, plain attributes (a
    dropout's rate, a batch norm's eps, a user's temperature), and trainable and frozen tensors of the same kind.
    """

    key: Hashable
    trainable: list[nn.Parameter]  # θ in the order of `module.parameters()`, tied ones once


def survey(module: nn.Module) -> Survey:
    """The state of `module` now."""
    key: list[Any] = []
    params: dict[int, nn.Parameter] = {}
    for m in _walk(module, set()):
        key += (id(m), len(m._forward_hooks), len(m._forward_pre_hooks))
        # `module.modules()` and the like take ten times as long, and a sinusoid's whole meta-step a millisecond
        key += [v for v in m.__dict__.values() if v.__class__ in _PLAIN or (v.__class__ is tuple and _plain(v))]
        for p in m._parameters.values():
            if p is not None:
                params[id(p)] = p
                key.append(_kind(p))
        key += [_kind(b) for b in m._buffers.values() if b is not None]
    # which names share one tensor
    key.append(tuple(params))
    return Survey(tuple(key), [p for p in params.values() if p.requires_grad])


def _walk(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """As `module.modules()`."""
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
