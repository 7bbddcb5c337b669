"""Settings of published experiments, each with its source; the families' files hold them."""

from __future__ import annotations

from dataclasses import dataclass

from .config import RunConfig
from .families.registry import FAMILIES


@dataclass(frozen=True)
class Preset:
    """A run and where its settings come from."""

    config: RunConfig
    source: str


PRESETS: dict[str, Preset] = {
    name: Preset(RunConfig(tasks=family.settings_type()).replace(preset.settings), preset.source)
    for family in FAMILIES.values()
    for name, preset in family.presets.items()
}
"""By name. Those named as a task family are what `fastmeta train` starts from."""
