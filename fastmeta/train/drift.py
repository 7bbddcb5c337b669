"""A trained start on streams of changing tasks, against fine-tuning on and against learning from scratch.

At every moment the present task is predicted before its chunk is learned from; and the very first task again, to see
what is forgotten. Three learners take the same inner steps of each chunk:

- "meta-learned, anew": from the meta-learned start each time;
- "meta-learned, going on": from there once, and then on and on: plain fine-tuning;
- "from scratch, going on": the same from a fresh network.

Each has the step size that it does best with on other streams. What is finished is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks.drift import Moment, Stream

from .progress import Progress
from .scores.compare import LR_FACTORS
from .scores.evaluate import TEST_SEED, Estimate, counted_divergence

LEARNERS = ("meta-learned, anew", "meta-learned, going on", "from scratch, going on")
_TUNING_SEED = 271828
"""Of the streams that step sizes are chosen on."""


@dataclass(frozen=True)
class Course:
    """How a learner did along the streams.

    Attributes:
        factor: of the run's step size, the one chosen.
        present: of the present task at each moment, before its chunk was learned from.
        first: of the first task at each moment, likewise.
    """

    factor: float
    present: tuple[Estimate, ...]
    first: tuple[Estimate, ...]

    @property
    def mean(self) -> float:
        """Over time."""
        return sum(estimate.mean for estimate in self.present) / len(self.present)


class MakeLearner(Protocol):
    """Makes what adapts: from the trained start or from scratch, with a factor of the run's step size."""

    def __call__(self, *, trained: bool, factor: float) -> MetaLearner:
        """A learner."""
        ...


@dataclass
class Drift:
    """Streams, and what learns along them, in a folder.

    Attributes:
        stream: where streams come from.
        make: makes the learners.
        folder: holds `drift.json`.
        identity: what decides the results, as plain values: a folder of others is refused.
        device: of the networks and streams.
        streams: how many, for step sizes and for results.
        steps: inner steps on each chunk.
        percent: scores are accuracies, else errors.
        measure: one number a stream, [T], of outputs and targets.
    """

    stream: Stream
    make: MakeLearner
    folder: Path
    identity: Mapping[str, Any]
    device: torch.device
    streams: int
    steps: int
    percent: bool
    measure: Callable[[Any, Tensor], Tensor]
    courses: dict[str, Course] = field(default_factory=dict)

    def run(self) -> None:
        """Do what is left.

        Raises:
            ValueError: the folder holds results of other settings.
        """
        known = self._known()
        progress = Progress(len(LEARNERS) * (len(LR_FACTORS) + 1))
        try:
            for place, name in enumerate(LEARNERS):
                tuned: dict[float, float] = {}
                for number, factor in enumerate(LR_FACTORS):
                    key = f"{name}, step size × {factor:g}"
                    if key not in known:
                        known[key] = asdict(self._course(name, factor, _TUNING_SEED))
                        self._write(known)
                    tuned[factor] = _course_of(known[key]).mean
                    progress.advance(place * (len(LR_FACTORS) + 1) + number + 1)
                    progress.status(key)
                best = (max if self.percent else min)(tuned, key=lambda factor: tuned[factor])
                if name not in known:
                    known[name] = asdict(self._course(name, best, TEST_SEED))
                    self._write(known)
                self.courses[name] = _course_of(known[name])
                progress.advance((place + 1) * (len(LR_FACTORS) + 1))
                progress.status(name)
        finally:
            progress.close()

    def moments(self, seed: int = TEST_SEED) -> Iterator[Moment]:
        """The streams of a seed."""
        return self.stream.moments(self.streams, torch.Generator(self.device).manual_seed(seed))

    @torch.no_grad()
    @counted_divergence()
    def _course(self, name: str, factor: float, seed: int) -> Course:
        learner = self.make(trained=name.startswith("meta-learned"), factor=factor)
        present, first = list[Estimate](), list[Estimate]()
        now = beginning = None
        for moment in self.moments(seed):
            beginning = beginning or moment
            if now is None:
                now = learner.adapt(moment.chunk_x, moment.chunk_y, steps=0)
            for scores, task in ((present, moment), (first, beginning)):
                outputs = now(task.test_x)
                finite = now.finite & outputs.isfinite().flatten(1).all(1)
                values = torch.where(finite, self.measure(outputs, task.test_y), 0.0 if self.percent else torch.inf)
                scores.append(Estimate.of(values, diverged=int((~finite).sum())))
            if name.endswith("anew"):
                now = learner.adapt(moment.chunk_x, moment.chunk_y, steps=self.steps)
            else:
                now = now.adapt_further(moment.chunk_x, moment.chunk_y, steps=self.steps)
        return Course(factor, tuple(present), tuple(first))

    def _known(self) -> dict[str, Any]:
        path = self.folder / "drift.json"
        if not path.exists():
            return {}
        content = json.loads(path.read_text())
        if content["run"] != json.loads(json.dumps(self.identity)):
            raise ValueError(
                f"{path} is the result of another checkpoint, other data or other settings; choose another folder "
                "(--out), or remove it"
            )
        return content["courses"]

    def _write(self, courses: Mapping[str, Any]) -> None:
        """Whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / ".drift.json.new"
        temporary.write_text(json.dumps({"run": self.identity, "courses": courses}, indent=1) + "\n")
        temporary.replace(self.folder / "drift.json")

    def table(self) -> str:
        """In Markdown: a row a learner. Recovery is the score one chunk after a change; forgetting that of the first
        task right after its own phase, and at the end."""
        phases = [moment.phase for moment in self.moments()]
        changes = [time for time in range(1, len(phases)) if phases[time] != phases[time - 1]]
        ended = changes[0] if self.stream.sudden and changes else min(1, len(phases) - 1)
        lines = [
            "| learner | step size | over time | chunk after a change | first task, learned | first task, at the end |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name, course in self.courses.items():
            after = [course.present[t + 1].mean for t in changes if t + 1 < len(phases)] if self.stream.sudden else []
            recovery = self._said(sum(after) / len(after)) if after else "–"
            cells = (
                self._said(course.mean),
                recovery,
                self._said(course.first[ended].mean),
                self._said(course.first[-1].mean),
            )
            lines.append(f"| {name} | × {course.factor:g} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _said(self, value: float) -> str:
        return f"{100 * value:.2f} %" if self.percent else f"{value:.4g}"


def _course_of(known: Mapping[str, Any]) -> Course:
    present, first = (tuple(Estimate(**estimate) for estimate in known[name]) for name in ("present", "first"))
    return Course(known["factor"], present, first)
