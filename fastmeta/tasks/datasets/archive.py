"""Files out of a folder or a zip file, by relative name, with errors that name the broken one."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import numpy as np

SIZE = 28
"""Side of the images in pixels, as in every published few-shot experiment on Omniglot."""


# All that zipfile and the file system raise for damaged or encrypted members.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


class Archive:
    """Read-only view of a folder or a zip file.

    Args:
        path: the folder or the `.zip`.

    Raises:
        FileNotFoundError: where nothing lies at `path`.
        ValueError: for a file that is no readable zip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a zip file or a folder")
        if path.is_dir():
            return
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ValueError(
                f"{path} is not a readable zip file ({error}); it may be truncated: download it again"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def names(self) -> Iterator[str]:
        """Relative names of all files, with forward slashes, sorted."""
        if self._zip is not None:
            yield from sorted(name for name in self._zip.namelist() if not name.endswith("/"))
        else:
            files = (file for file in self.path.rglob("*") if file.is_file())
            yield from sorted(file.relative_to(self.path).as_posix() for file in files)

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            ValueError: for a missing, truncated or corrupt member.
        """
        try:
            return self._zip.read(name) if self._zip is not None else (self.path / name).read_bytes()
        except KeyError as error:
            raise ValueError(f"{self.label(name)} is missing") from error
        except _UNREADABLE as error:
            raise ValueError(
                f"{self.label(name)} cannot be read ({error}); it is damaged or truncated: download it again"
            ) from error

    def read_image(self, name: str) -> np.ndarray:
        """One drawing as uint8 [28, 28]: ink is 255, paper is 0; Lanczos, as in the MAML paper's code.

        Raises:
            ValueError: for a file that does not decode as an image.
            RuntimeError: without Pillow.
        """
        return 255 - self.read_picture(name, size=SIZE, mode="L")

    def read_picture(self, name: str, *, size: int | None, mode: Literal["L", "RGB", "auto"]) -> np.ndarray:
        """One image as uint8, [H, W] in mode "L" (grey), [H, W, 3] in mode "RGB"; "auto" is grey for a grey file.

        Args:
            name: of the member.
            size: side of the square that the image is resampled to (Lanczos); None leaves it as it is.
            mode: what the pixels become.

        Raises:
            ValueError: for a file that does not decode as an image.
            RuntimeError: without Pillow.
        """
        image_module = _pillow()
        data = self.read(name)
        try:
            with image_module.open(io.BytesIO(data)) as image:
                grey = image.mode in {"1", "L", "LA", "I", "I;16", "F"}
                picture = image.convert(("L" if grey else "RGB") if mode == "auto" else mode)
                if size is not None:
                    picture = picture.resize((size, size), image_module.Resampling.LANCZOS)
        # Pillow raises SyntaxError for a broken PNG chunk, and an error of its own for an absurd size.
        except (OSError, ValueError, SyntaxError, zlib.error, image_module.DecompressionBombError) as error:
            raise ValueError(
                f"{self.label(name)} is not a readable image ({error}); it is damaged: download it again"
            ) from error
        return np.asarray(picture, dtype=np.uint8)

    def label(self, name: str) -> str:
        """How messages call a member: the path in a folder, `zip!member` in a zip file."""
        return f"{self.path}!{name}" if self._zip is not None else str(self.path / name)


def _pillow():  # noqa: ANN202 (a module)
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimeError('reading images needs Pillow: pip install "fastmeta[train]"') from error
    return Image
