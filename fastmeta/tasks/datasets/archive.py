"""Files out of a folder or a zip file, by relative name, with errors that name the broken one."""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

SIZE = 28
"""Side of the images in pixels, as in every published few-shot experiment on Omniglot."""


_GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "F"}
"""Pillow's modes without colour."""
_MOST = 256 * 2**20
"""Bytes of the largest member that is read: images and lists of them are far smaller."""
_RATIO = 100
"""By which a member of over a megabyte may be compressed: images shrink by a few percent, text tenfold."""

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
            ValueError: for a missing, truncated or corrupt member, or one that claims more than an image takes.
        """
        self._check_claim(name)
        try:
            return self._zip.read(name) if self._zip is not None else (self.path / name).read_bytes()
        except KeyError as error:
            raise ValueError(f"{self.label(name)} is missing") from error
        except _UNREADABLE as error:
            raise ValueError(
                f"{self.label(name)} cannot be read ({error}); it is damaged or truncated: download it again"
            ) from error

    def _check_claim(self, name: str) -> None:
        """Raise ValueError for a member whose header claims an absurd size, before memory is taken for it."""
        if self._zip is None or name not in self._zip.NameToInfo:
            return
        info = self._zip.getinfo(name)
        if info.file_size > _MOST or info.file_size > max(2**20, _RATIO * info.compress_size):
            raise ValueError(
                f"{self.label(name)} claims {info.file_size:,} bytes out of {info.compress_size:,} compressed ones; no "
                "image does: the file is damaged or made to fill the memory, take it from its source again"
            )

    def header(self, name: str) -> tuple[bool, tuple[int, int]]:
        """Of an image: whether it is grey, and (H, W); its pixels are not decoded. Raises as `read_picture`."""
        with self._opened(name) as image:
            return image.mode in _GREY, (image.height, image.width)

    def stamp(self, name: str) -> tuple[str, int, int]:
        """Name, size, and checksum or time of change: another file has another one."""
        if self._zip is not None:
            info = self._zip.getinfo(name)
            return name, info.file_size, info.CRC
        status = (self.path / name).stat()
        return name, status.st_size, status.st_mtime_ns

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
        with self._opened(name) as image:
            return pixels_of(image, size=size, mode=mode)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """An image of Pillow's; what fails while it is used is said with its name."""
        image_module = pillow()
        data = self.read(name)
        try:
            with image_module.open(io.BytesIO(data)) as image:
                yield image
        # Pillow raises SyntaxError for a broken PNG chunk, and an error of its own for an absurd size.
        except (OSError, ValueError, SyntaxError, zlib.error, image_module.DecompressionBombError) as error:
            raise ValueError(
                f"{self.label(name)} is not a readable image ({error}); it is damaged: download it again"
            ) from error

    def label(self, name: str) -> str:
        """How messages call a member: the path in a folder, `zip!member` in a zip file."""
        return f"{self.path}!{name}" if self._zip is not None else str(self.path / name)


def pixels_of(image: Any, *, size: int | None, mode: Literal["L", "RGB", "auto"]) -> np.ndarray:
    """An image of Pillow's, of whatever mode, as `Archive.read_picture` gives it."""
    if image.mode in {"I;16", "I;16L", "I;16B", "I", "F"}:
        image = _eight_bits(image)
    picture = image.convert(("L" if image.mode in _GREY else "RGB") if mode == "auto" else mode)
    if size is not None:
        picture = picture.resize((size, size), pillow().Resampling.LANCZOS)
    return np.asarray(picture, dtype=np.uint8)


def _eight_bits(image: Any) -> Any:
    """A grey image of 16 bits (I;16), of integers below 256 (I) or of floating point in [0, 1] (F), by 256 levels.

    Raises:
        ValueError: for values out of range.
    """
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    most = {"I": 255, "F": 1}.get(image.mode, 65535)
    if not (low >= 0 and high <= most):
        raise ValueError(
            f"pixels of mode {image.mode} must lie in [0, {most}], got values from {low:g} to {high:g}; save it with 8 "
            "or 16 bits a pixel"
        )
    return pillow().fromarray(np.round(values * (255 / most)).astype(np.uint8))


def pillow():  # noqa: ANN201 (a module)
    """Pillow's module Image.

    Raises:
        RuntimeError: without Pillow.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimeError('reading images needs Pillow: pip install "fastmeta[train]"') from error
    return Image
