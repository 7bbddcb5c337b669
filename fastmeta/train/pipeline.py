"""A whole run, stage by stage: clusters, plain pre-training, meta-training; every stage survives a kill.

A script calls it as the command line does:

    config, source = prepare(PRESETS["ssl-series"].config, ["strokes.zip"])
    pipeline = Pipeline(config, source, folder="runs/strokes")
    pipeline.train()
    print(pipeline.compare()[0].table())
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import MAML
from fastmeta.models import head_of
from fastmeta.tasks import ClassEpisodes, Images, TaskFamily
from fastmeta.tasks.base import sampler_speed
from fastmeta.tasks.cactus import Clustered
from fastmeta.tasks.derived import Pooled, Unlabelled

from .build import fitted, load_source, make_algorithm, make_family, make_model
from .checkpoint import load_checkpoint
from .config import Execution, RunConfig, from_checkpoint
from .families.base import Source
from .families.cactus import CactusFamily, CactusSettings
from .partitions import Partitions
from .progress import Progress
from .scores.clusters import compare_clusters
from .scores.compare import LR_FACTORS, Comparison, compare, curve_steps
from .scores.evaluate import TEST_SEED
from .scores.probe import compare_probes
from .trainer import Outcome, Trainer


def prepare(config: RunConfig, paths: Sequence[str] = ()) -> tuple[RunConfig, Source | None]:
    """Read the data, and fit the run's network to them. Raises as `load_source`."""
    source = load_source(config, paths)
    return fitted(config, source), source


@dataclass
class Pipeline:
    """A run in a folder.

    Attributes:
        config: all that decides its numbers, fitted to the source (`prepare`).
        source: its data; None for a family that needs none.
        folder: holds `checkpoint.pt` and `log.jsonl`, and a folder for each earlier stage.
        execution: where it runs.
        checkpoint_seconds: least time between two checkpoints.
        time_limit: minutes for all stages together; None for none.
        say: takes one line at the beginning of a stage.
    """

    config: RunConfig
    source: Source | None
    folder: Path
    execution: Execution = field(default_factory=Execution)
    checkpoint_seconds: float = 30.0
    time_limit: float | None = None
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit must be a positive number of minutes or None, got {self.time_limit!r}")
        self.config.family.check_source(self.source)
        self.folder = Path(self.folder)
        self.device = self.execution.torch_device()
        self.fingerprint = None if self.source is None else self.source.fingerprint()

    # Training. --------------------------------------------------------------------------------------------------------

    def train(self, *, resume: bool = True) -> Outcome:
        """Do what is left of all stages. Raises as `check` and `Trainer.run`."""
        self.check()
        begin = time.monotonic()
        outcome = self._cluster(resume, begin)
        if outcome is None and self.config.pretraining.pretrain_iterations:
            outcome = self.pretrainer(begin).run(resume=resume)
        if outcome is not None and not outcome.finished:
            return outcome
        trainer = self.trainer(begin)
        self.say(
            f"{self.config.algorithm.algorithm}, {self.config.train.iterations:,} iterations: {trainer.checkpoint}"
        )
        return trainer.run(resume=resume)

    def check(self) -> None:
        """Make all that training and evaluation will need, so that what cannot work fails before the first iteration.

        Raises:
            ValueError: settings that do not fit each other or the data, or data too small for the tasks.
            RuntimeError: a library is missing; the message names the extra.
        """
        config, family = self.config, self.config.family
        family.check_libraries()
        if self._needs_clusters():
            self._partitions(resume=True, begin=None).check()
        else:
            make_family(config, self.source, self.device)
        if config.pretraining.pretrain_iterations:
            self._pretraining_tasks()
        family.tests(config.tasks, self.source, self.device)
        family.probe(config.tasks, self.source)
        model = make_model(config)
        for evaluation in (False, True):
            make_algorithm(config, model, self.execution, evaluation=evaluation)

    def trainer(self, begin: float | None = None) -> Trainer:
        """Of the meta-training, from the start that the run asks for."""
        model = make_model(self.config).to(self.device)
        if self.config.pretraining.from_pretrained:
            self._load(model, self.folder / "pretrained", new_head=True)
        family = make_family(self.config, self.source, self.device)
        speed = sampler_speed(family, self.config.train.meta_batch)
        self.say(f"on {self.device}, which samples {speed:,.0f} episodes a second")
        return self._trainer(make_algorithm(self.config, model, self.execution), family, self.folder, begin=begin)

    def pretrainer(self, begin: float | None = None) -> Trainer:
        """Of plain training: the outer loop on whole tasks, without an inner one.

        Raises:
            ValueError: for tasks that number their classes anew each time, which leave nothing to learn in common.
        """
        family = Pooled(self._pretraining_tasks())
        model = make_model(self.config).to(self.device)
        if self.config.tasks.head_starts_at_zero:
            head_of(model).reset_parameters()  # a layer of zeros passes no gradient on to the others
        iterations = self.config.pretraining.pretrain_iterations
        self.say(f"plain pre-training, {iterations:,} iterations: {self.folder / 'pretrained'}")
        loss = self.config.family.pretrain_loss or self.config.family.loss
        learner = MAML(model, inner_loss=loss, inner_steps=0, backend=self.execution.backend)
        return self._trainer(learner, family, self.folder / "pretrained", iterations=iterations, begin=begin)

    def _pretraining_tasks(self) -> TaskFamily:
        tasks = self.config.family.pretrain(self.config.tasks, self.source, self.device)
        if tasks is None:
            raise ValueError(
                f"task {self.config.tasks.task} has no plain pre-training: its tasks number their classes anew each "
                "time; set pretrain_iterations to 0"
            )
        return tasks

    def _trainer(
        self,
        learner: MetaLearner,
        family: TaskFamily,
        folder: Path,
        *,
        iterations: int | None = None,
        begin: float | None = None,
    ) -> Trainer:
        settings = self.config.settings()
        if self.fingerprint is not None:
            settings["data"] = self.fingerprint
        config = self.config.train if iterations is None else replace(self.config.train, iterations=iterations)
        spent = 0.0 if begin is None else (time.monotonic() - begin) / 60
        return Trainer(
            learner,
            family,
            config=config,
            folder=folder,
            settings=settings,
            checkpoint_seconds=self.checkpoint_seconds,
            time_limit=None if self.time_limit is None else max(self.time_limit - spent, 1e-9),
            read_settings=self._read_settings,
        )

    @staticmethod
    def _read_settings(old: Mapping[str, Any]) -> Mapping[str, Any]:
        """A checkpoint's settings by today's names, and the data's fingerprint with them."""
        if "task" not in old:
            return old  # not of a run of the command line: the comparison says so
        return {**from_checkpoint(old).flat(), **({"data": old["data"]} if "data" in old else {})}

    def _load(self, model: nn.Module, folder: Path, *, new_head: bool) -> None:
        """Put a stage's network into `model`; with a linear predictor that starts anew, where the run wants it zero."""
        model.load_state_dict(load_checkpoint(folder / "checkpoint.pt")["model"])
        if new_head and self.config.tasks.head_starts_at_zero:
            for p in head_of(model).parameters():
                nn.init.zeros_(p)

    # Clusters. --------------------------------------------------------------------------------------------------------

    def _needs_clusters(self) -> bool:
        return self.config.family.clustered and not isinstance(self.source, Clustered)

    def _cluster(self, resume: bool, begin: float) -> Outcome | None:
        """Where the run needs clusters and has none: make them, or read those it made. An outcome: it was stopped."""
        if not self._needs_clusters():
            return None
        found = self._partitions(resume=resume, begin=begin).make(resume=resume)
        if isinstance(found, Outcome):
            return found
        assert isinstance(self.source, Images)
        self.source = Clustered(self.source, found)
        return None

    def _read_clusters(self) -> None:
        """Those that the run's folder holds: step sizes are chosen on the tasks that they make."""
        if not self._needs_clusters():
            return
        path = self._partitions(resume=True, begin=None).path
        if not path.exists():
            raise ValueError(
                f"{path} does not exist: the tasks of {self.config.tasks.task} are clusters of images, and this run "
                "has made none of these; give the data that it was trained on"
            )
        self._cluster(resume=True, begin=time.monotonic())

    def _partitions(self, *, resume: bool, begin: float | None) -> Partitions:
        def train(learner: MetaLearner, tasks: TaskFamily, folder: Path, iterations: int) -> Outcome:
            return self._trainer(learner, tasks, folder, iterations=iterations, begin=begin).run(resume=resume)

        settings = self.config.tasks
        assert isinstance(settings, CactusSettings)
        assert isinstance(self.source, Images)
        return Partitions(
            settings=settings,
            images=CactusFamily.training_images(settings, self.source),
            fingerprint=self.fingerprint,
            seed=self.config.train.seed,
            folder=self.folder,
            device=self.device,
            train=train,
            say=self.say,
        )

    def trained(self) -> dict[str, Any]:
        """The checkpoint of the meta-training."""
        return load_checkpoint(self.folder / "checkpoint.pt")

    # Comparison. -----------------------------------------------------------------------------------------------------

    def starts(self) -> dict[str, nn.Module]:
        """The networks to compare: freshly initialised, pre-trained where the run does that, meta-learned."""
        fresh = self.config.replace({"seed": self.config.train.seed + 1})
        starts = {"from scratch": make_model(fresh)}
        if (self.folder / "pretrained" / "checkpoint.pt").exists():
            starts["pre-trained"] = make_model(self.config)
            self._load(starts["pre-trained"], self.folder / "pretrained", new_head=True)
        starts["meta-learned"] = make_model(self.config)
        self._load(starts["meta-learned"], self.folder, new_head=False)
        return {name: model.to(self.device) for name, model in starts.items()}

    def learner(self, start: str, model: nn.Module, inner_lr: float) -> MetaLearner:
        """What adapts a start with a step size; the meta-learned one with all that the algorithm learned beside it."""
        config = self.config.replace({"inner_lr": inner_lr})
        learner = make_algorithm(config, model, self.execution, evaluation=True)
        if start == "meta-learned":
            learner.load_state_dict(self.trained()["algorithm"])
        return learner

    def labelled_sets(self) -> ClassEpisodes:
        """Episodes that clusters are scored on: of one class more than there are clusters, which is the anomaly."""
        (family,) = self.config.family.tests(self.config.tasks, self.source, self.device).values()
        assert isinstance(family, ClassEpisodes)
        return family

    def compare(self, *, steps: Sequence[int] | None = None, seed: int = TEST_SEED) -> list[Comparison]:
        """Adapt all starts to the tasks of unseen data, with the step size that each does best with on training tasks.

        Self-supervised learners of labelled images are probed too (`probe.compare_probes`).

        Args:
            steps: numbers of inner steps; None: from 0 to the run's `eval_steps`.
            seed: of the episodes.

        Raises:
            ValueError: data too small for the tasks, or whose clusters the run has not made.
        """
        config, starts = self.config, self.starts()
        self._read_clusters()
        steps = curve_steps(config.eval_steps) if steps is None else sorted(set(steps))
        tests = config.family.tests(config.tasks, self.source, self.device)
        tuning = make_family(config, self.source, self.device)
        inner_lr, episodes = config.algorithm.inner_lr, config.evaluation.episodes
        progress = Progress(len(starts) * (len(LR_FACTORS) + len(tests)))
        begun, names = itertools.count(), {model: name for name, model in starts.items()}

        def learner(model: nn.Module, lr: float) -> MetaLearner:
            progress.advance(next(begun))  # one for every set of tasks that is scored
            progress.status(f"adapting with step size {lr:g}")
            return self.learner(names[model], model, lr)

        try:
            if config.family.evaluation == "clusters":
                assert isinstance(tuning, Unlabelled)
                return compare_clusters(
                    starts, learner, self.labelled_sets(), tuning=tuning.family, inner_lr=inner_lr, steps=steps,
                    episodes=episodes, seed=seed,
                )  # fmt: skip
            comparisons = compare(
                starts, learner, tests, tuning=tuning, inner_lr=inner_lr, percent=config.family.percent, steps=steps,
                episodes=episodes, seed=seed,
            )  # fmt: skip
        finally:
            progress.close()
        return [*comparisons, *self._probes(starts)]

    def _probes(self, starts: Mapping[str, nn.Module]) -> list[Comparison]:
        """How well a linear classifier on the features predicts labels, where the family asks for it and has some."""
        images = self.config.family.probe(self.config.tasks, self.source)
        if images is None:
            return []
        try:
            return [compare_probes(starts, *images, device=self.device)]
        except RuntimeError as error:  # a library is missing: no reason to lose the other scores
            self.say(f"no linear probe: {error}")
            return []
