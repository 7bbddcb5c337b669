"""The outer loop: meta-training with checkpoints that resume to the very same parameters."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks import VariedEpisodes
from fastmeta.tasks.base import TaskFamily
from fastmeta.train.scores.evaluate import counted_divergence, score

from .checkpoint import exclusive, load_checkpoint, save_checkpoint
from .progress import Progress
from .run_config import Setting, TrainConfig

MAY_CHANGE = ("iterations", "eval_steps", "episodes")
"""Settings that a resumed run may change; all others decide what the done part of the run was."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        iterations: meta-steps done since the very beginning.
        reason: "finished", "time limit", or the name of the signal that stopped it.
        signal: its number, 0 where there was none.
    """

    iterations: int
    reason: str
    signal: int = 0

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.reason == "finished"


class Trainer:
    """Meta-trains, and keeps `checkpoint.pt` and `log.jsonl` in a folder.

    Args:
        algorithm: MAML, FOMAML or Reptile; its module is trained in place.
        family: where episodes come from, on the module's device.
        config: the outer loop.
        folder: made where it is missing. Only one run at a time may use it.
        settings: whatever else identifies the run (model, algorithm, data): kept in the checkpoint, and
            compared when resuming.
        checkpoint_seconds: least time between two checkpoints; the last one is always written.
        time_limit: minutes after which `run` stops, with a checkpoint; None for none.
        read_settings: turns a checkpoint's settings into today's names, where an older version wrote them.

    The checkpoint holds the algorithm's parameters and buffers (the module's and its own), outer optimiser, generator
    states, settings and progress. A run that is
    killed at any point, and started again, ends on a CPU in bit-identical parameters.
    """

    def __init__(
        self,
        algorithm: MetaLearner,
        family: TaskFamily,
        *,
        config: TrainConfig,
        folder: str | Path,
        settings: Mapping[str, Setting] | None = None,
        checkpoint_seconds: float = 30.0,
        time_limit: float | None = None,
        read_settings: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ) -> None:
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f"time_limit must be a positive number of minutes or None, got {time_limit!r}")
        if isinstance(family, VariedEpisodes):
            family.check(algorithm.module)
        self.algorithm, self.family, self.config = algorithm, family, config
        self.folder = Path(folder)
        self.settings = {**(settings or {}), **asdict(config)}
        self.iteration = 0
        self._checkpoint_seconds, self._time_limit = checkpoint_seconds, time_limit
        self._read_settings = read_settings
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        # The fused update saves a dozen small launches an iteration; other devices do not have it.
        fused = family.device.type in {"cpu", "cuda"}
        self._optimizer = kinds[config.outer_optimizer](self._groups(), lr=config.outer_lr, fused=fused)
        self._schedule = LambdaLR(self._optimizer, config.lr_factor)
        self._generator = torch.Generator(family.device).manual_seed(config.seed)
        self._tally = _Tally(family.device)
        self._metric = "accuracy"

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters to train: those of what the algorithm learns beside the network at a step size of their own,
        where the run has one."""
        trained = [p for p in self.algorithm.parameters() if p.requires_grad]
        learned_lr, learned = self.settings.get("learned_lr"), self.algorithm.learned
        if learned_lr is None or learned is None:
            return [{"params": trained}]
        own = {id(p) for p in learned.parameters()}
        beside = [p for p in trained if id(p) in own]
        return [{"params": [p for p in trained if id(p) not in own]}, {"params": beside, "lr": learned_lr}]

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint is, or will be."""
        return self.folder / "checkpoint.pt"

    def run(self, *, resume: bool = True) -> Outcome:
        """Train until `config.iterations`, the time limit, SIGINT or SIGTERM; leaves a checkpoint.

        Args:
            resume: go on from the folder's checkpoint where there is one. False: start over, and replace it.

        Raises:
            ValueError: the checkpoint is damaged, or of another configuration (all differences are named).
            RuntimeError: another run uses the folder, or training diverged; the last checkpoint is kept.
        """
        with exclusive(self.folder):
            if resume and self.checkpoint.exists():
                self.restore(load_checkpoint(self.checkpoint))
            self._truncate_log()
            progress = Progress(self.config.iterations, done=self.iteration)
            if self.iteration:
                progress.say(f"resuming {self.checkpoint} at iteration {self.iteration:,}")
            try:
                with counted_divergence(), _stop_signals() as received:
                    return self._loop(progress, received)
            finally:
                progress.close()

    def _loop(self, progress: Progress, received: list[signal.Signals]) -> Outcome:
        start = saved = time.monotonic()
        self._tally.reset()
        while self.iteration < self.config.iterations and not received:
            now = time.monotonic()
            if self._time_limit is not None and now - start > 60 * self._time_limit:
                break
            if now - saved > self._checkpoint_seconds:
                self.save()
                saved = now
            self._step()
            progress.advance(self.iteration)
            if self.iteration % _log_interval(self.config.iterations) == 0:
                progress.status(self._log())
        self.save()
        if received:
            return Outcome(self.iteration, received[0].name, received[0])
        return Outcome(self.iteration, "time limit" if self.iteration < self.config.iterations else "finished")

    def _step(self) -> None:
        """One meta-step."""
        episodes = self.family.sample(self.config.meta_batch, self._generator)
        self.algorithm.at_iteration(self.iteration)
        self._optimizer.zero_grad()
        out = self.algorithm.accumulate(*episodes)
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.algorithm.parameters(), self.config.grad_clip)
        self._optimizer.step()
        self._schedule.step()
        self.iteration += 1
        self._tally.add(out.loss, score(out.outputs, episodes.query_y), out.finite)
        self._metric = "error" if episodes.query_y.is_floating_point() else "accuracy"

    def save(self) -> None:
        """Write the checkpoint now.

        Raises:
            RuntimeError: a parameter is not finite; the file keeps the last good state.
        """
        broken = [name for name, p in self.algorithm.named_parameters() if not p.isfinite().all()]
        if broken:
            raise self._diverged(f"{broken[0]} is not finite")
        device = self.family.device
        save_checkpoint(
            self.checkpoint,
            {
                "configuration": self.settings,
                "iteration": self.iteration,
                "model": self.algorithm.module.state_dict(),
                "algorithm": self.algorithm.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "episode_generator": self._generator.get_state(),
                "torch_generator": torch.get_rng_state(),
                "device_generator": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            },
        )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `save` wrote.

        Raises:
            ValueError: for a state of another configuration, or one without the algorithm's own parameters.
        """
        check_same(self._read_settings(state["configuration"]), self.settings, folder=self.folder)
        missing = self.algorithm.state_dict().keys() - state["algorithm"].keys()
        if missing:
            raise ValueError(
                f"{self.checkpoint} lacks {', '.join(sorted(missing))}: the version of fastmeta that wrote it kept the "
                "network alone. It can be evaluated, not resumed; choose another folder (--out), or start over "
                "(--no-resume)"
            )
        self.algorithm.load_state_dict(state["algorithm"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._restart_schedule(state["iteration"])
        torch.set_rng_state(state["torch_generator"])
        # A generator's state means nothing on another kind of device: a run that moves draws anew.
        device = self.family.device
        if self._generator.get_state().shape == state["episode_generator"].shape:
            self._generator.set_state(state["episode_generator"])
        else:
            self._generator.manual_seed(self.config.seed + state["iteration"])
        if device.type == "cuda" and state["device_generator"] is not None:
            torch.cuda.set_rng_state(state["device_generator"], device)
        self.iteration = state["iteration"]

    def _restart_schedule(self, iteration: int) -> None:
        """Go on at `iteration`, of this run's number of iterations: an extended run has another schedule."""
        for group, made in zip(self._optimizer.param_groups, self._groups(), strict=True):
            group["initial_lr"] = made.get("lr", self.config.outer_lr)
        self._schedule = LambdaLR(self._optimizer, self.config.lr_factor, last_epoch=iteration - 1)

    def _truncate_log(self) -> None:
        """Drop what a killed run logged after its last checkpoint: those iterations come again."""
        path = self.folder / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() and self.iteration else []
        # The last line of a killed run may be cut short.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] <= self.iteration]
        temporary = path.with_suffix(".tmp")  # a kill between emptying the log and filling it again would lose it
        temporary.write_text("".join(kept))
        temporary.replace(path)

    def _log(self) -> str:
        """Append a record of the iterations since the last one, and say it in words.

        Raises:
            RuntimeError: the meta-loss is not finite.
        """
        mean_loss, mean_score, left_out = self._tally.reset()
        record = {"iteration": self.iteration, "loss": mean_loss, self._metric: mean_score}
        record["left_out"] = left_out
        record["lr"] = self.config.lr_at(self.iteration)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if not math.isfinite(mean_loss):
            raise self._diverged(f"the meta-loss is {mean_loss}")
        aside = f"  {left_out} task(s) left out: not finite" if left_out else ""
        return f"loss {mean_loss:.4g}  {self._metric} {mean_score:.4g}{aside}"

    def _diverged(self, what: str) -> RuntimeError:
        kept = f"; {self.checkpoint} keeps the last good state" if self.checkpoint.exists() else ""
        return RuntimeError(
            f"training diverged: {what} at iteration {self.iteration}{kept}. Lower inner_lr or outer_lr, "
            f"or bound the meta-gradient with grad_clip"
        )


class _Tally:
    """Sums over iterations, on the device: reading them is what waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._count = 0

    def add(self, loss: Tensor, scores: Tensor, finite: Tensor) -> None:
        loss = torch.where(finite.any(), loss, torch.nan)  # zero without a finite task, and training must not go on
        self._sums += torch.stack([loss.double(), scores.double().mean(), (~finite).sum().double()])
        self._count += 1

    def reset(self) -> tuple[float, float, int]:
        """(mean loss, mean score, tasks left out) since the last call."""
        loss, scores, left_out = (self._sums / max(self._count, 1)).tolist()
        left_out *= self._count
        self._sums.zero_()
        self._count = 0
        return loss, scores, round(left_out)


def _log_interval(iterations: int) -> int:
    """Two hundred records a run, at least one every hundred iterations."""
    return max(1, min(iterations // 200, 100))


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], *, folder: Path) -> None:
    """Raise ValueError, naming every difference, where a checkpoint's configuration is not the wanted one."""
    names = sorted((old.keys() | new.keys()) - set(MAY_CHANGE))
    absent = "(unset)"
    changed = [
        f"  {name}: {old.get(name, absent)} -> {new.get(name, absent)}"
        for name in names
        if old.get(name, absent) != new.get(name, absent)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run of another configuration:\n" + "\n".join(changed) + "\n"
            "Ask for the old settings to resume it, choose another folder (--out), or start over "
            "(--no-resume)"
        )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """Collect SIGINT and SIGTERM instead of dying of the first; a second one acts as usual."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {int(number): signal.getsignal(number) for number in watched}

    def stop(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        signal.signal(number, before[number])

    for number in watched:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number in watched:
            signal.signal(number, before[number])
