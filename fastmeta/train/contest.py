"""Several algorithms on the same tasks with equal time: train each, score all on the same unseen episodes.

    contest = Contest(entries(["maml", "anil"], {"shots": (1, 5)}, task="omniglot"), folder="runs/contest", ...)
    contest.run()
    print(contest.table())

Every entry is a run in a folder of its own; what is finished is not done again, and what was killed goes on.
"""

from __future__ import annotations

import itertools
import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmeta import __version__
from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks import TaskFamily

from .build import fitted, load_source, make_algorithm, make_family, make_model
from .config import Execution, RunConfig
from .families.base import Source
from .families.settings import TaskSettings
from .methods.base import Published
from .methods.base import Setting as PublishedSetting
from .pipeline import Pipeline
from .presets import PRESETS, start_of
from .run_config import Setting
from .scores.calibration import expected_calibration_error
from .scores.contest_plot import Bar, plot_contest
from .scores.evaluate import TEST_SEED, Estimate, draw, evaluate_episodes

_SPEED_SECONDS = 3.0
"""How long an entry's speed is measured."""

_CURVE = 20
"""Most inner steps that are scored one by one."""


@dataclass(frozen=True)
class Entry:
    """One algorithm on tasks of one size.

    Attributes:
        algorithm: its name.
        column: what distinguishes the tasks, such as "5-way 1-shot".
        config: the run, but for its number of iterations.
    """

    algorithm: str
    column: str
    config: RunConfig

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.algorithm}-{re.sub('[^0-9a-z]+', '-', self.column)}"

    @property
    def published(self) -> Published | None:
        """What the algorithm's paper reports for tasks of this size."""
        ways = self.config.flat().get("ways", 0)
        return self.config.method.published.get(PublishedSetting(self.config.tasks.task, ways, self.config.tasks.shots))


@dataclass(frozen=True)
class Result:
    """How an entry did.

    Attributes:
        iterations: meta-steps that its time allowed.
        seconds: that they took; NaN where the run was stopped in between.
        scores: {inner steps: estimate} on unseen tasks.
        calibration: expected calibration error of classifiers after the last number of steps, in [0, 1].
    """

    iterations: int
    seconds: float
    scores: dict[int, Estimate]
    calibration: float | None = None

    @property
    def final(self) -> Estimate:
        """After the last number of steps."""
        return self.scores[max(self.scores)]


def entries(
    algorithms: Sequence[str], task: str, *, changes: Mapping[str, Setting], vary: Mapping[str, Sequence[Setting]]
) -> list[Entry]:
    """Every algorithm, each from its own preset, for every combination of the settings in `vary`.

    Raises:
        ValueError: for an unknown algorithm, one that is named twice, or settings that do not fit.
    """
    if len(set(algorithms)) < len(algorithms):
        raise ValueError(f"algorithms must be different, got {' '.join(algorithms)}")
    found = []
    for algorithm, values in itertools.product(algorithms, itertools.product(*vary.values())):
        chosen = {**changes, **dict(zip(vary, values, strict=True)), "algorithm": algorithm}
        config = PRESETS[start_of(task, algorithm)].config
        config = config.replace({name: value for name, value in chosen.items() if name in config.flat()})
        entry = Entry(algorithm, _column(config), config)
        if entry not in found:  # of a setting that this algorithm does not have
            found.append(entry)
    return found


def _column(config: RunConfig) -> str:
    unlabelled = config.flat().get("unlabelled")
    return config.tasks.size + (f", {unlabelled:.0%} unlabelled" if unlabelled else "")


@dataclass
class Contest:
    """Entries, in a folder.

    Attributes:
        entries: what to train and score.
        folder: holds a folder for each, and `contest.json`, `contest.md` and `contest.png`.
        seconds: of training for each entry, on a CPU of processor time over threads.
        data, test_data: files to train on and to score on; without the latter, unseen tasks of the former.
        execution: where it runs.
        say: takes one line at a time.
    """

    entries: Sequence[Entry]
    folder: Path
    seconds: float
    data: Sequence[str] = ()
    test_data: Sequence[str] = ()
    execution: Execution = field(default_factory=Execution)
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds!r}")
        self.folder = Path(self.folder)
        self.device = self.execution.torch_device()
        self.results: dict[Entry, Result] = {}
        self._sources: dict[tuple[TaskSettings, tuple[str, ...]], Source | None] = {}

    def run(self) -> int:
        """Do what is left; the number of a signal that stopped it, else 0. Raises as `Pipeline.train`."""
        prepared = [(entry, *self._fitted(entry.config)) for entry in self.entries]
        for _, config, source in prepared:  # what cannot work fails before the first iteration
            self._pipeline(config, source, self.folder).check()
        for number, (entry, config, source) in enumerate(prepared, 1):
            self.say(f"[{number}/{len(prepared)}] {entry.algorithm}, {entry.column}")
            result = self._finished(entry, config, source)
            if result is None:
                result = self._train(entry, config, source)
            if isinstance(result, int):
                return result
            self.results[entry] = result
            self.say(f"  {score_of(entry, result.final)} after {result.iterations:,} meta-steps")
        return 0

    def _fitted(self, config: RunConfig) -> tuple[RunConfig, Source | None]:
        """The run fitted to its data, and those."""
        source = self._load(config, self.data)
        return fitted(config, source), source

    def _load(self, config: RunConfig, paths: Sequence[str]) -> Source | None:
        """Read once for all entries whose tasks have the same settings."""
        key = config.tasks, tuple(paths)
        if key not in self._sources:
            self._sources[key] = load_source(config, paths)
        return self._sources[key]

    def _train(self, entry: Entry, config: RunConfig, source: Source | None) -> Result | int:
        folder = self.folder / entry.name
        config = config.replace({"iterations": self._iterations(folder, config, source)})
        begin, resumed = time.monotonic(), (folder / "checkpoint.pt").exists()
        pipeline = self._pipeline(config, source, folder)
        outcome = pipeline.train()
        if outcome.signal:
            return outcome.signal
        seconds = float("nan") if resumed else time.monotonic() - begin
        learner = make_algorithm(config, make_model(config).to(self.device), self.execution, evaluation=True)
        learner.load_state_dict(pipeline.trained()["algorithm"])
        scores, calibration = self._scores(learner, config, source)
        result = Result(outcome.iterations, seconds, scores, calibration)
        _write(folder / "result.json", {"run": self._identity(config, source), **_as_json(result)})
        return result

    def _scores(
        self, learner: MetaLearner, config: RunConfig, source: Source | None
    ) -> tuple[dict[int, Estimate], float | None]:
        """On unseen tasks: of each number of steps, and how far confidence is from accuracy after the last."""
        steps, probabilities, labels = _steps(config), list[Tensor](), list[Tensor]()

        def seen(count: int, outputs: Tensor, targets: Tensor) -> None:
            if count == steps[-1] and config.family.percent:
                probabilities.append(outputs.softmax(2).flatten(0, 1))
                labels.append(targets.flatten())

        drawn = draw(self._tests(config, source), episodes=config.evaluation.episodes, meta_batch=25, seed=TEST_SEED)
        scores = evaluate_episodes(
            learner, drawn, steps=steps, measure=config.family.score, worst=config.family.worst, seen=seen
        )
        if not labels or not torch.cat(probabilities).isfinite().all():
            return scores, None
        return scores, expected_calibration_error(torch.cat(probabilities), torch.cat(labels)).error

    def _pipeline(self, config: RunConfig, source: Source | None, folder: Path) -> Pipeline:
        return Pipeline(config, source, folder=folder, execution=self.execution)

    def _tests(self, config: RunConfig, source: Source | None) -> TaskFamily:
        unseen = self._unseen(config) if self.test_data else source
        return next(iter(config.family.tests(self._whole(config).tasks, unseen, self.device).values()))

    def _unseen(self, config: RunConfig) -> Source | None:
        return self._load(self._whole(config), self.test_data)

    def _whole(self, config: RunConfig) -> RunConfig:
        """Without the choice of alphabets, which is one of the training data."""
        names = ("alphabets", "exclude_alphabets") if self.test_data else ()
        return config.replace({name: () for name in names if name in config.family.settings})

    # How long an entry trains. ----------------------------------------------------------------------------------------

    def _iterations(self, folder: Path, config: RunConfig, source: Source | None) -> int:
        """How many meta-steps fit the time, measured once: a run that goes on after a kill ends where it would have."""
        path, run = folder / "speed.json", self._identity(config, source)
        known = json.loads(path.read_text()) if path.exists() else None
        if known is None or known["run"] != run:
            folder.mkdir(parents=True, exist_ok=True)
            known = {"run": run, "seconds of a meta-step": self._step_seconds(config, source)}
            _write(path, known)
        return max(1, round(self.seconds / known["seconds of a meta-step"]))

    def _step_seconds(self, config: RunConfig, source: Source | None) -> float:
        learner = make_algorithm(config, make_model(config).to(self.device), self.execution)
        family = make_family(config, source, self.device)
        generator = torch.Generator(self.device).manual_seed(config.train.seed)
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.0)

        def step() -> None:
            learner.accumulate(*family.sample(config.train.meta_batch, generator))
            optimizer.step()
            optimizer.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        for _ in range(3):
            step()
        begin, count = self._clock(), 0
        while self._clock() - begin < min(_SPEED_SECONDS, self.seconds):
            step()
            count += 1
        return (self._clock() - begin) / count

    def _clock(self) -> float:
        """Seconds; on a CPU those of its processors, so that other programs cost no algorithm meta-steps."""
        return time.process_time() / torch.get_num_threads() if self.device.type == "cpu" else time.monotonic()

    # What is kept. ----------------------------------------------------------------------------------------------------

    def _identity(self, config: RunConfig, source: Source | None) -> dict[str, Any]:
        """What decides a result."""
        unseen = self._unseen(config) if self.test_data else None
        data, test_data = (None if x is None else x.fingerprint() for x in (source, unseen))
        run = {
            "settings": {**config.flat(), "iterations": None}, "data": data, "test data": test_data,
            "seconds": self.seconds,
        }  # fmt: skip
        return json.loads(json.dumps(run))

    def _finished(self, entry: Entry, config: RunConfig, source: Source | None) -> Result | None:
        """The result that the entry's folder holds.

        Raises:
            ValueError: it is that of another run.
        """
        path = self.folder / entry.name / "result.json"
        if not path.exists():
            return None
        known = json.loads(path.read_text())
        if known["run"] != self._identity(config, source):
            raise ValueError(
                f"{path} is the result of other settings, data or seconds; choose another folder (--out), or remove it"
            )
        return _from_json(known)

    def rows(self) -> list[dict[str, Any]]:
        """Every result as plain values, for a file."""
        return [
            {
                "algorithm": entry.algorithm,
                "tasks": entry.column,
                "settings": entry.config.flat(),
                "published": None if entry.published is None else entry.published._asdict(),
                **_as_json(result),
            }
            for entry, result in self.results.items()
        ]

    def write(self) -> list[Path]:
        """`contest.json`, `contest.md` and, where Matplotlib is installed, `contest.png`: those that were written."""
        paths = [self.folder / f"contest.{kind}" for kind in ("json", "md", "png")]
        _write(paths[0], {"seconds": self.seconds, "environment": self._environment(), "rows": self.rows()})
        paths[1].write_text(self.table() + "\n")
        config = self.entries[0].config
        bars = [
            Bar(e.algorithm, e.column, r.scores, None if e.published is None else e.published.score)
            for e, r in self.results.items()
        ]
        try:
            plot_contest(bars, paths[2], percent=config.family.percent, measure=config.family.metric)
        except RuntimeError as error:
            self.say(f"no picture: {error}")
            return paths[:2]
        return paths

    def _environment(self) -> dict[str, Any]:
        """What speeds depend on."""
        return {
            "device": str(self.device), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "fastmeta": __version__, "processor": platform.processor() or platform.machine(),
        }  # fmt: skip

    def table(self) -> str:
        """In Markdown: a row an algorithm, a column a size of tasks. ECE is the expected calibration error; published
        figures, of full training on a GPU, stand in brackets."""
        columns = list(dict.fromkeys(entry.column for entry in self.results))
        lines = ["| algorithm | " + " | ".join(columns) + " | meta-steps |", "| --- |" + " --- |" * (len(columns) + 1)]
        for algorithm in dict.fromkeys(entry.algorithm for entry in self.results):
            mine = {
                entry.column: (entry, result) for entry, result in self.results.items() if entry.algorithm == algorithm
            }
            cells = [_cell(*mine[column]) if column in mine else "–" for column in columns]
            counts = " / ".join(f"{result.iterations:,}" for _, result in mine.values())
            lines.append(f"| {algorithm} | " + " | ".join(cells) + f" | {counts} |")
        return "\n".join(lines)


def _steps(config: RunConfig) -> list[int]:
    """Of errors the whole curve, which is drawn."""
    if config.family.percent or not config.method.inner_loop:
        return config.steps_to_score
    return list(range(config.eval_steps + 1)) if config.eval_steps <= _CURVE else config.steps_to_score


def _cell(entry: Entry, result: Result) -> str:
    published = entry.published
    calibration = "" if result.calibration is None else f", ECE {100 * result.calibration:.1f} %"
    return score_of(entry, result.final) + calibration + ("" if published is None else f" [{published.score}]")


def score_of(entry: Entry, estimate: Estimate) -> str:
    """As a person reads it."""
    return estimate.percent() if entry.config.family.percent else str(estimate)


def _as_json(result: Result) -> dict[str, Any]:
    scores = {str(steps): asdict(estimate) for steps, estimate in result.scores.items()}
    return {
        "iterations": result.iterations, "seconds": result.seconds, "scores": scores, "calibration": result.calibration,
    }  # fmt: skip


def _from_json(known: Mapping[str, Any]) -> Result:
    scores = {int(steps): Estimate(**estimate) for steps, estimate in known["scores"].items()}
    return Result(known["iterations"], known["seconds"], scores, known["calibration"])


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
