"""Every algorithm that the commands know: a new one is a file beside this one and a line here."""

from __future__ import annotations

from .base import AnyMethod
from .maml import FOMAML_METHOD, MAML_METHOD, REPTILE_METHOD

METHODS: dict[str, AnyMethod] = {
    "maml": MAML_METHOD,
    "fomaml": FOMAML_METHOD,
    "reptile": REPTILE_METHOD,
}
"""By the name that `--algorithm` takes."""
