"""A look at a learner's module and losses before every call: its parameters, and all else that a plan depends on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules import module as _everywhere

from .state import Found, Key, find

# Hooks on all modules at once
_GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    _everywhere._global_forward_hooks,
    _everywhere._global_forward_pre_hooks,
    _everywhere._global_backward_hooks,
    _everywhere._global_backward_pre_hooks,
)


class ModuleState(NamedTuple):
    """What was found.

    Two surveys with equal `key` make the same program: same submodules, training modes, hooks, attributes that its code
    may read (a dropout's rate, a user's temperature in a dictionary, a config object or a global), and trainable and
    frozen tensors of the same kind. With equal `losses` as well, the same plan.
    """

    key: Hashable
    trainable: list[nn.Parameter]  # θ in the order of `module.parameters()`, tied ones once
    names: tuple[str, ...]  # theirs
    losses: Hashable  # the state of the losses


class _Seen(NamedTuple):
    """What a survey was made of."""

    module: nn.Module
    losses: tuple[Callable[..., Any], ...]
    of_module: Found
    of_losses: Found | None
    hooks: tuple[int, ...]
    survey: ModuleState


class Watch:
    """Surveys of one module and its losses, call after call.

    While every object within reach is the one that was there at the last survey, and every tensor of the kind that it
    was, that survey itself comes back.
    """

    def __init__(self) -> None:
        self._last: _Seen | None = None

    def look(self, module: nn.Module, *losses: Callable[..., Any]) -> ModuleState:
        """The state of `module` and of the losses now."""
        last = self._last
        if last is None or last.module is not module or _changed(last, losses):
            self._last = last = _survey(module, losses, last)  # at once: another thread may be looking
        return last.survey


def _changed(seen: _Seen, losses: tuple[Callable[..., Any], ...]) -> bool:
    if len(losses) != len(seen.losses) or any(a is not b for a, b in zip(losses, seen.losses, strict=True)):
        return True
    if seen.of_module.changed() or (seen.of_losses is not None and seen.of_losses.changed()):
        return True
    return tuple(map(len, _GLOBAL_HOOKS)) != seen.hooks


def _survey(module: nn.Module, losses: tuple[Callable[..., Any], ...], last: _Seen | None) -> _Seen:
    found = find([module], by_name=module)
    of_losses = find(losses) if losses else None
    hooks = tuple(map(len, _GLOBAL_HOOKS))
    key = Key((*(tuple(h) for h in _GLOBAL_HOOKS), found.key))
    params = {id(p): p for m in found.tree for p in m._parameters.values() if p is not None}
    trainable = [p for p in params.values() if p.requires_grad]
    names = tuple(name for name, p in module.named_parameters() if p.requires_grad)
    survey = ModuleState(key, trainable, names, None if of_losses is None else of_losses.key)
    if last is not None and survey.key == last.survey.key and survey.losses == last.survey.losses:
        survey = last.survey  # other objects of equal value
    return _Seen(module, losses, found, of_losses, hooks, survey)
