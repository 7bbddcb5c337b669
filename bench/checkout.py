"""A checkout of fastmeta for child processes to import, whatever is installed."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import environment


@contextmanager
def checkout_on_path(root: Path = environment.ROOT, *, wheels: Path | None = None) -> Iterator[dict[str, str]]:
    """The variables under which Python imports the `fastmeta` of a checkout, this `bench`, and the wheels in a folder.

    Links to `fastmeta` with `kernels` inside it, as an installation would lay them, stand first on the path.
    """
    with tempfile.TemporaryDirectory(prefix="fastmeta-") as folder:
        site = Path(folder)
        (site / "fastmeta").mkdir()
        for path in (root / "fastmeta").iterdir():
            (site / "fastmeta" / path.name).symlink_to(path)
        (site / "fastmeta/kernels").symlink_to(root / "kernels")
        (site / "bench").symlink_to(environment.ROOT / "bench")
        for wheel in sorted(wheels.glob("*.whl")) if wheels is not None else ():
            zipfile.ZipFile(wheel).extractall(site)
        before = os.environ.get("PYTHONPATH")
        path = str(site) if not before else f"{site}{os.pathsep}{before}"
        yield {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
