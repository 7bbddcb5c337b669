"""Reads a GPU's machine code, as `nvdisasm` prints it: instructions, and what loops that multiply matrices load."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

# Instructions that multiply matrices: Hopper's warp-group and Blackwell's tensor-memory ones, a warp's, float64's.
MATRIX = ("HGMMA", "UTCHMMA", "UTCQMMA", "HMMA", "DMMA")
_LOADS = ("LDG", "LDGSTS")

_LINE = re.compile(r"^(\.L_x_\d+):|^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*)$", re.MULTILINE)


class Loops(NamedTuple):
    """Of the innermost loops that multiply matrices: instructions of the longest, and loads from memory in all of them,
    by whether they bring a thread 16 bytes. What is loaded ahead of a loop, or stored, is not among them."""

    instructions: int = 0
    wide: int = 0
    narrow: int = 0


def instructions(code: str) -> Counter[str]:
    """How often each operation stands in the code, with its modifiers."""
    return Counter(operation for label, operation, _ in _LINE.findall(code) if not label)


def of_kind(operations: Counter[str], kind: str) -> int:
    """How many of an operation there are, with any modifiers."""
    return sum(n for operation, n in operations.items() if operation.split(".")[0] == kind)


def product_loops(code: str) -> Loops:
    """See `Loops`. A loop lies between a label and a jump back to it."""
    places: dict[str, int] = {}
    body: list[str] = []
    spans: list[tuple[int, int]] = []
    for label, operation, rest in _LINE.findall(code):
        if label:
            places[label] = len(body)
            continue
        target = re.search(r"\.L_x_\d+", rest) if operation.split(".")[0] == "BRA" else None
        if target is not None and target[0] in places:
            spans.append((places[target[0]], len(body)))
        body.append(operation)
    loops = [Counter(body[first : last + 1]) for first, last in spans if not _has_another_inside((first, last), spans)]
    return _sum_of([loop for loop in loops if any(of_kind(loop, kind) for kind in MATRIX)])


def _has_another_inside(span: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    return any(other != span and span[0] <= other[0] and other[1] <= span[1] for other in spans)


def _sum_of(loops: Sequence[Counter[str]]) -> Loops:
    loads = Counter[bool]()
    for loop in loops:
        for operation, n in loop.items():
            if operation.split(".")[0] in _LOADS:
                loads[".128" in operation] += n
    return Loops(max((loop.total() for loop in loops), default=0), loads[True], loads[False])
