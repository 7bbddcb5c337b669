"""Every family of tasks that the commands know: a new one is a file beside this one and a line here."""

from __future__ import annotations

from typing import Any

from .base import Family
from .cactus import CACTUS
from .clusters import CLUSTER
from .glyphs import GLYPHS
from .inr import INR
from .labelled import LABELLED
from .mixed import MIXED
from .omniglot import OMNIGLOT
from .pretexts import SSL_IMAGES
from .series import SSL_SERIES
from .sinusoid import SINUSOID
from .text import SSL_TEXT
from .umtra import UMTRA_IMAGES

FAMILIES: dict[str, Family[Any, Any]] = {
    family.name: family
    for family in (
        SINUSOID,
        OMNIGLOT,
        GLYPHS,
        LABELLED,
        UMTRA_IMAGES,
        CACTUS,
        CLUSTER,
        SSL_IMAGES,
        SSL_SERIES,
        SSL_TEXT,
        INR,
        MIXED,
    )
}
"""By the name that `fastmeta train` takes."""
