"""Text as numbered characters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

NOT_MASKED = -100
"""Label of a character that is not masked: `F.cross_entropy` passes over it."""


@dataclass(frozen=True, repr=False)
class Text:
    """A text as numbers.

    Attributes:
        tokens: int64 [characters], indices into `vocabulary`; the number behind the last: any other character.
        vocabulary: the characters that have a number, each once.
        title: where it comes from, for a person.
    """

    tokens: Tensor
    vocabulary: str
    title: str = "text"

    def __repr__(self) -> str:
        return f"Text({self.describe()})"

    @property
    def symbols(self) -> int:
        """Characters, and one for all others: classes of a prediction."""
        return len(self.vocabulary) + 1

    def split(self, held_out: float) -> tuple[Text, Text]:
        """The beginning, and the last share `held_out`."""
        end = round(len(self.tokens) * (1 - held_out))
        parts = (self.tokens[:end], self.tokens[end:])
        first, last = (Text(part, self.vocabulary, self.title) for part in parts)
        return first, last

    def fingerprint(self) -> str:
        """A digest of vocabulary and characters."""
        return hashlib.sha256(self.vocabulary.encode() + self.tokens.numpy().tobytes()).hexdigest()[:16]

    def describe(self) -> str:
        """For a person: how long, of how many different characters."""
        return f"{self.title}: {len(self.tokens):,} characters, {len(self.vocabulary)} different ones"


def as_text(text: str, *, vocabulary: str | None = None, title: str = "text") -> Text:
    """Number the characters of a text.

    Args:
        text: any.
        vocabulary: characters to number, such as another text's; None takes those that occur here.
        title: for a person.

    Raises:
        ValueError: an empty text.
    """
    if not text:
        raise ValueError(f"{title} is empty; give a file with text in it")
    vocabulary = "".join(sorted(set(text))) if vocabulary is None else vocabulary
    number = {character: i for i, character in enumerate(vocabulary)}
    tokens = torch.tensor([number.get(character, len(vocabulary)) for character in text])
    return Text(tokens, vocabulary, title)


def load_text(paths: Iterable[str | Path], *, vocabulary: str | None = None) -> Text:
    """Read UTF-8 text files, one behind the other; of a folder all its .txt and .md files.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an empty file, or one that is no text.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(f for f in path.rglob("*") if f.suffix in {".txt", ".md"}) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path} holds no .txt or .md file")
        files += found
    if not files:
        raise ValueError("data must name at least one text file or folder, got none")
    return as_text("".join(map(_read, files)), vocabulary=vocabulary, title=", ".join(file.name for file in files[:3]))


def _read(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start:,}); convert it") from error
    if "\0" in text:
        raise ValueError(f"{path} is binary, not text (a zero byte at {text.index(chr(0)):,}); give a text file")
    if not text.strip():
        raise ValueError(f"{path} is empty; give a file with text in it")
    return text.replace("\r\n", "\n")
