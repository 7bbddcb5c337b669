"""Random programs: the source of a network and a loss, data, and options, out of a few numbers."""

from __future__ import annotations

import copy
import functools
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from blocks import GROUPS, Block
from helper_code import HELPERS
from loop_truth import Loop, MakeLoss, Rule
from losses import LABELS, NUMBERS
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

BATCHES = ("rows", "rows", "two", "dict", "uneven", "ids", "ids alone")
OUTPUTS = ("tensor", "tensor", "tensor", "dict", "tuple")
RULES = (
    Rule(lr=0.1), Rule(lr=0.3), Rule(lr=0.1, momentum=0.9), Rule(lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.1),
    Rule("adam", lr=0.05),
)  # fmt: skip
ORDERS = ("exact", "exact", "exact", "first", "reptile")
TASKS = 2
ALL: list[Block] = [b for group in GROUPS.values() for b in group]


@dataclass(frozen=True)
class Program:
    """A network of blocks, a loss, a batch and options; every field is an index or a plain value."""

    blocks: tuple[tuple[int, int], ...]  # group, block in it
    loss: int
    outer: int | None  # another loss on the query set
    labels: bool
    batch: int
    output: int
    order: int
    rule: int
    steps: int
    options: int  # which of some options are on, bit by bit
    seed: int

    def parts(self) -> list[Block]:
        groups = list(GROUPS.values())
        return [groups[g % len(groups)][b % len(groups[g % len(groups)])] for g, b in self.blocks]

    @property
    def kind(self) -> str:
        return BATCHES[self.batch % len(BATCHES)]

    @property
    def returns(self) -> str:
        return OUTPUTS[self.output % len(OUTPUTS)]

    def flag(self, bit: int) -> bool:
        return bool(self.options >> bit & 1)

    @property
    def queried(self) -> bool:
        """Whether learners are called by the user, whose own loss then follows: it can read no fast weights."""
        return (
            self.flag(10)
            and self.flag(11)
            and "net." not in self._loss("", self.loss if self.outer is None else self.outer)
        )

    @property
    def statistics(self) -> str:
        """What batch norms of the query pass normalise by; the plain loop has but the batch."""
        return "support" if self.flag(12) and self.flag(13) and self.flag(14) and not self.queried else "batch"

    def loop(self) -> Loop:
        order = ORDERS[self.order % len(ORDERS)]
        uneven = self.kind == "uneven"
        return Loop(
            order, self.steps, RULES[self.rule % len(RULES)],
            2 if self.flag(0) and self.flag(1) and not uneven else None, 0.5 if self.flag(2) and self.flag(3) else None,
            "head" if self.flag(4) and self.flag(5) and order != "reptile" else "",
        )  # fmt: skip

    def source(self) -> str:
        """The network's class and its losses, as Python."""
        init = [
            "super().__init__()",
            "self.kl = torch.zeros(())",
            "self.head = nn.Linear(4, 3)",
            "self.table = nn.Embedding(6, 4)",
        ]
        if not self.kind.startswith("ids"):
            init.pop()
        forward = ["self.kl = torch.zeros(())", "h = x * 1.0" if self.kind != "ids alone" else "h = self.table(x)"]
        if self.kind != "rows":
            forward += ["if b is not None: h = h + b.cos()", "if scale is not None: h = h * scale"]
            forward += [
                "if points is not None: h = h + self.head(points).mean(0)[0]",
                "if ids is not None: h = h + self.table(ids)",
            ]
        for i, block in enumerate(self.parts()):
            init += _numbered(block.init, i)
            forward += [f"# {block.name}", *_numbered(block.forward, i)]
        forward += ["out = self.head(h)"]
        forward += {
            "tensor": ["return out"], "dict": ["return {'out': out, 'none': None, 'h': h}"],
            "tuple": ["return out, h.detach()"],
        }[self.returns]  # fmt: skip
        lines = [
            "class Net(nn.Module):", "    def __init__(self):", *textwrap.indent("\n".join(init), " " * 8).splitlines(),
            "    def forward(self, x, b=None, *, scale=None, points=None, ids=None):",
            *textwrap.indent("\n".join(forward), " " * 8).splitlines(),
            self._loss("make_inner", self.loss),
            self._loss("make_outer", self.loss if self.outer is None else self.outer),
        ]  # fmt: skip
        return "\n".join(lines)

    def _loss(self, name: str, index: int) -> str:
        losses = LABELS if self.labels else NUMBERS
        code = losses[index % len(losses)]
        whole = re.search(r"\bout\b", code) is None  # a loss itself, not an expression
        if whole and self.returns == "tensor":
            return f"def {name}(net):\n    return {code}"
        pick = {"tensor": "", "dict": "        out = out['out']\n", "tuple": "        out = out[0]\n"}[self.returns]
        if whole:
            code = f"{code}(out, y)"
        return f"def {name}(net):\n    def loss(out, y):\n{pick}        return {code}\n    return loss"

    def build(self) -> Built:
        """Its network, losses and data."""
        names = {
            "torch": torch, "nn": nn, "F": F, "np": np, "functional_call": functional_call, "checkpoint": checkpoint,
            "partial": functools.partial, "reduce": functools.reduce, "copy": copy,
        }  # fmt: skip
        learned = nn.Parameter(torch.tensor([0.7, 1.2, 0.4], dtype=torch.float64))
        names["learned"] = learned
        source = self.source()
        exec(compile(HELPERS, "helpers", "exec"), names)
        exec(compile(source, "program", "exec"), names)

        def make() -> nn.Module:
            torch.manual_seed(self.seed)
            return names["Net"]().double()  # pyright: ignore[reportCallIssue]

        data = self.data()
        used = "learned" in source
        return Built(make, names["make_inner"], names["make_outer"], data, learned if used else None)  # pyright: ignore[reportArgumentType]

    def data(self) -> tuple[Any, Any, Any, Any]:
        generator = torch.Generator().manual_seed(self.seed + 1)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(TASKS, *shape, generator=generator, dtype=torch.float64)

        def ids(n: int) -> torch.Tensor:
            return torch.randint(6, (TASKS, n), generator=generator)

        def inputs(n: int) -> Any:
            return {
                "rows": lambda: normal(n, 4), "two": lambda: (normal(n, 4), normal(n, 4)),
                "dict": lambda: {"x": normal(n, 4), "scale": normal(n, 1)},
                "uneven": lambda: {"x": normal(n, 4), "points": normal(2, 4)},
                "ids": lambda: {"x": normal(n, 4), "ids": ids(n)}, "ids alone": lambda: ids(n),
            }[self.kind]()  # fmt: skip

        def targets(n: int) -> torch.Tensor:
            if self.labels:
                labels = torch.randint(3, (TASKS, n), generator=generator)
                labels[:, ::2] = 0  # a task all of whose labels are ignored is left out
                return labels
            return normal(n, 3)

        support, query = 4, 3 if self.flag(6) else 4
        return inputs(support), targets(support), inputs(query), targets(query)


@dataclass(frozen=True)
class Built:
    """A program's objects. `make` gives the same network each time."""

    make: Callable[[], nn.Module]
    inner: MakeLoss
    outer: MakeLoss
    data: tuple[Any, Any, Any, Any]
    learned: nn.Parameter | None


def _numbered(lines: str, i: int) -> list[str]:
    """Lines of a block under its own number; between spaces the sign is a matrix product."""
    return re.sub(r"(?<=\w)@", str(i), lines).splitlines()
