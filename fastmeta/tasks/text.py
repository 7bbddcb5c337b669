"""Masked characters: tell what stands under the mask; a task is one passage of a text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .base import Episodes, check_count, check_generator

UNSEEN = -100
"""Label of a character that is not masked: `F.cross_entropy` passes over it."""


@dataclass(frozen=True)
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


class MaskedText:
    """Each task takes one passage; windows of its first half are the support set, of its second half the query set.

    A share of the characters of a window is hidden, at least one: the input holds the mask there and the target their
    numbers, and `UNSEEN` everywhere else.

    Args:
        text: copied to `device` once.
        length: characters of a window.
        passage: characters of a passage; a task starts anywhere in the text.
        masked: share of a window's characters that is hidden.
        shots: support windows N of a task.
        queries: query windows M of a task.
        device: where the text lies and episodes are made.

    Raises:
        ValueError: a text shorter than a passage, half a passage shorter than a window, or an option out of range.
    """

    def __init__(
        self,
        text: Text,
        *,
        length: int = 32,
        passage: int = 1000,
        masked: float = 0.15,
        shots: int = 10,
        queries: int = 10,
        device: torch.device | str = "cpu",
    ) -> None:
        check_count("length", length, minimum=2)
        check_count("passage", passage, minimum=2)
        check_count("shots", shots)
        check_count("queries", queries)
        if not 0 < masked < 1:
            raise ValueError(f"masked must lie between 0 and 1, got {masked!r}")
        if passage // 2 < length:
            raise ValueError(f"passage must be at least twice the length {length}, got {passage}; windows have no room")
        if len(text.tokens) < passage:
            raise ValueError(
                f"{text.title} has {len(text.tokens):,} characters, fewer than one passage of {passage:,}; give more "
                "text or ask for a shorter --passage"
            )
        self.length, self.passage, self.hidden = length, passage, max(round(masked * length), 1)
        self.shots, self.queries = shots, queries
        self.mask = text.symbols
        self.device = torch.device(device)
        self._tokens = text.tokens.to(self.device)

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Draw `tasks` episodes: inputs and targets int64 [tasks, N or M, length]."""
        check_count("tasks", tasks)
        check_generator(generator, self.device)
        last = len(self._tokens) - self.passage
        begin = torch.randint(last + 1, (tasks, 1), generator=generator, device=self.device)
        half = self.passage // 2
        support = self._windows(begin, self.shots, generator)
        query = self._windows(begin + half, self.queries, generator)
        return Episodes(*support, *query)

    def _windows(self, begin: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        room = self.passage // 2 - self.length + 1
        shape = (len(begin), count)
        start = begin + torch.randint(room, shape, generator=generator, device=self.device)
        tokens = self._tokens[start.unsqueeze(2) + torch.arange(self.length, device=self.device)]
        keys = torch.rand(tokens.shape, generator=generator, device=self.device)
        hidden = torch.zeros_like(tokens, dtype=torch.bool).scatter_(2, keys.topk(self.hidden, dim=2).indices, True)
        return tokens.masked_fill(hidden, self.mask), tokens.masked_fill(~hidden, UNSEEN)
