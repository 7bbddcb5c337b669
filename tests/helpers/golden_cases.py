"""Reads the committed golden cases: problems in float64 with the meta-gradients that public libraries gave for them.

    for case in cases("conv4*"):
        model = case.model()               # nn.Sequential in float64 that holds the meta-parameters
        case["support_x"], case.grad       # any array by name; {parameter's name: expected meta-gradient}
    for case in cases("meta_sgd*", ALGORITHMS):
        case.spec["extra"]                 # what the further arrays mean, in words
        case.extra["alpha/0.weight"], case.grad_extra["alpha/0.weight"]

tests/golden/README.md and tests/golden/algorithms/README.md list the fields.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import registry
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ALGORITHMS = GOLDEN / "algorithms"
LOSSES = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden case: its description (`spec`) and its arrays as tensors."""

    name: str
    spec: dict[str, Any]
    arrays: dict[str, torch.Tensor]

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.arrays[key]

    def named(self, prefix: str) -> dict[str, torch.Tensor]:
        """The arrays whose names begin with `prefix`, by the rest of their names."""
        return {name[len(prefix) :]: value for name, value in self.arrays.items() if name.startswith(prefix)}

    @property
    def params(self) -> dict[str, torch.Tensor]:
        return self.named("param/")

    @property
    def extra(self) -> dict[str, torch.Tensor]:
        return self.named("extra/")

    @property
    def grad(self) -> dict[str, torch.Tensor]:
        return self.named("grad/")

    @property
    def grad_extra(self) -> dict[str, torch.Tensor]:
        return self.named("grad_extra/")

    @property
    def adapted(self) -> dict[str, torch.Tensor]:
        return self.named("adapted/")

    def model(self) -> nn.Sequential:
        """The network with the case's meta-parameters; for cases whose `model` is a list of layers."""
        layers = []
        for name, *args in self.spec["model"]:
            options = args.pop() if args and isinstance(args[-1], dict) else {}
            layers.append(getattr(nn, name)(*args, **options))
        model = nn.Sequential(*layers).double()
        model.load_state_dict(self.params)
        return model


def names(pattern: str = "*", folder: Path = GOLDEN) -> list[str]:
    """Names of the cases that a glob pattern admits."""
    return sorted(path.stem for path in folder.glob(f"{pattern}.npz"))


def cases(pattern: str = "*", folder: Path = GOLDEN) -> Iterator[Case]:
    """The cases that a glob pattern admits, in order of their names; an error where there are none."""
    found = names(pattern, folder)
    if not found:
        raise FileNotFoundError(f"no golden case in {folder} matches {pattern!r}")
    for name in found:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            spec = json.loads(str(file["case"]))
            arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "case"}
        yield Case(name, spec, arrays)


def learner_of(case: Case, **options: Any) -> Any:
    """The learner that a case of MAML, first-order MAML or Reptile describes, on the torch backend."""
    inner = {name: value for name, value in case.spec["inner"].items() if name != "optimizer"}
    if "betas" in inner:
        inner["betas"] = tuple(inner["betas"])
    rule = {"sgd": fastmeta.SGD, "adam": fastmeta.Adam}[case.spec["inner"]["optimizer"]]
    return registry.ALGORITHMS[case.spec["algorithm"]].make(
        case.model(),
        inner_loss=LOSSES[case.spec["loss"]],
        inner_optimizer=rule(**inner),
        inner_steps=case.spec["steps"],
        backend="torch",
        **options,
    )
