"""Where fastmeta keeps on disk what it found out or decoded."""

from __future__ import annotations

import os
from pathlib import Path

PLACE = "FASTMETA_CACHE"
"""The environment variable that names the folder."""


def cache_folder() -> Path:
    """Where fastmeta keeps what it found: `FASTMETA_CACHE`, or `fastmeta` in `XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        RuntimeError: there is no home folder.
    """
    if place := os.environ.get(PLACE):
        return Path(place).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if base and Path(base).is_absolute():  # the specification has a relative one ignored
        return Path(base) / "fastmeta"
    return Path.home() / ".cache" / "fastmeta"
