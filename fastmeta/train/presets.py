"""Settings of published experiments, each with its source; the families' files hold them."""

from __future__ import annotations

from dataclasses import dataclass

from .config import RunConfig
from .families.base import PresetSettings
from .families.registry import FAMILIES
from .methods.registry import METHODS


@dataclass(frozen=True)
class Preset:
    """A run and where its settings come from."""

    config: RunConfig
    source: str


def _presets() -> dict[str, Preset]:
    presets = {
        name: Preset(RunConfig(tasks=family.settings_type()).replace(preset.settings), preset.source)
        for family in FAMILIES.values()
        for name, preset in family.presets.items()
    }
    for algorithm, method in METHODS.items():
        for task, preset in method.presets.items():
            presets[f"{task}-{algorithm}"] = _of_algorithm(presets[task].config, algorithm, preset)
    return presets


def _of_algorithm(base: RunConfig, algorithm: str, preset: PresetSettings) -> Preset:
    return Preset(base.replace({"algorithm": algorithm, **preset.settings}), preset.source)


PRESETS = _presets()
"""By name. `fastmeta train` starts from the one of the task family, or of family and algorithm where there is one."""


def start_of(task: str, algorithm: str | None) -> str:
    """The name of the preset that a run starts from."""
    own = f"{task}-{algorithm}"
    return own if own in PRESETS else task
