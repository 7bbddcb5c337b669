"""The outer loop: training, stopping and resuming."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from kill_and_resume import ITERATIONS
from training import PROGRAM, Broken, Fixed, Interrupted, LearnedScale, learner, same, trainer

import fastmeta
from fastmeta.tasks import Sinusoid
from fastmeta.train.checkpoint import exclusive, load_checkpoint, save_checkpoint
from fastmeta.train.run_config import TrainConfig
from fastmeta.train.scores.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


def test_training_helps(tmp_path):
    algorithm = learner()
    before = evaluate(algorithm, Sinusoid(), episodes=200, steps=(2,))[2]
    outcome = trainer(tmp_path, algorithm=algorithm, iterations=150, meta_batch=10).run()
    after = evaluate(algorithm, Sinusoid(), episodes=200, steps=(2,))[2]
    assert (outcome.iterations, outcome.reason, outcome.signal) == (150, "finished", 0)
    assert after.mean + after.half_width < before.mean - before.half_width


@pytest.mark.parametrize("kind", [fastmeta.MAML, fastmeta.FOMAML, fastmeta.Reptile])
def test_both_backends_train_alike(tmp_path, kind):
    learners = [learner(kind, dtype=torch.float64, backend=backend) for backend in ("torch", "reference")]
    start = learners[0].module[0].weight.clone()
    for algorithm in learners:
        family = Sinusoid(shots=5, queries=7, dtype=torch.float64)
        folder = tmp_path / algorithm.backend
        trainer(folder, algorithm=algorithm, family=family, outer_optimizer="sgd", iterations=8).run()
    for fast, slow in zip(*(algorithm.parameters() for algorithm in learners), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)
    assert (learners[0].module[0].weight - start).abs().max() > 1e-3


def test_the_seed_decides(tmp_path):
    weights = []
    for run, seed in enumerate((1, 1, 2)):
        algorithm = learner()
        trainer(tmp_path / str(run), algorithm=algorithm, seed=seed).run()
        weights.append(algorithm.module[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "schedule, factors", [("constant", [1, 1, 1]), ("cosine", [1, 0.5, 0]), ("linear", [1, 0.5, 0])]
)
def test_schedules(schedule, factors):
    config = TrainConfig(iterations=10, outer_lr=0.3, schedule=schedule)
    assert [config.lr_at(i) for i in (0, 5, 10)] == pytest.approx([0.3 * f for f in factors])


def test_the_schedule_reaches_the_optimiser(tmp_path):
    """Plain SGD on one constant meta-gradient moves as far as the sum of the step sizes."""
    moved = {}
    for schedule in ("constant", "linear"):
        algorithm = learner()
        run = trainer(
            tmp_path / schedule,
            algorithm=algorithm,
            family=Fixed(),
            outer_optimizer="sgd",
            outer_lr=1e-4,
            schedule=schedule,
            iterations=4,
        )
        start = algorithm.module[2].bias.clone()
        run.run()
        moved[schedule] = (algorithm.module[2].bias - start).item()
    assert moved["linear"] / moved["constant"] == pytest.approx(2.5 / 4, rel=0.01)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_every_step_has_the_schedule_s_step_size_to_the_bit(tmp_path, schedule):
    """Also where a run is resumed, and where it is extended: the schedule is that of the new number of iterations."""
    used = []
    for count in (7, 30):
        config = {"outer_optimizer": "sgd", "outer_lr": 0.1, "schedule": schedule}
        run = trainer(tmp_path, iterations=count, **config)
        run._optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
        run.run()
        wanted = [run.config.lr_at(i) for i in range(0 if count == 7 else 7, count)]
        assert used == wanted
        used.clear()


def test_gradient_clipping(tmp_path):
    algorithm = learner()
    start = torch.cat([p.detach().flatten() for p in algorithm.parameters()])
    options = {"outer_optimizer": "sgd", "outer_lr": 1.0, "grad_clip": 1e-3, "iterations": 1}
    trainer(tmp_path, algorithm=algorithm, **options).run()
    end = torch.cat([p.detach().flatten() for p in algorithm.parameters()])
    assert (end - start).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_the_log(tmp_path):
    trainer(tmp_path, iterations=600).run()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == list(range(3, 601, 3))
    assert all(math.isfinite(record["loss"]) and record["left_out"] == 0 for record in records)
    assert sum(r["loss"] for r in records[-20:]) < sum(r["loss"] for r in records[:20])


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": -1},
        {"meta_batch": 0},
        {"seed": -1},
        {"outer_optimizer": "lion"},
        {"schedule": "step"},
        {"outer_lr": -1.0},
        {"outer_lr": math.nan},
        {"grad_clip": math.inf},
    ],
)
def test_bad_configuration(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))} must be .*, got"):
        TrainConfig(**options)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_bad_time_limit(tmp_path, limit):
    with pytest.raises(ValueError, match="time_limit must be a positive number of minutes or None, got"):
        trainer(tmp_path, time_limit=limit)


def test_killed_at_any_point_a_run_ends_in_the_same_bits(tmp_path):
    """Killed ten times: while starting, stepping, writing the checkpoint."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < ITERATIONS, "killed runs got somewhere, and not to the end"
    whole, killed = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert whole["iteration"] == ITERATIONS
    assert same(whole, killed)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    assert [json.loads(line)["iteration"] for line in logs[1]] == list(range(1, ITERATIONS + 1))
    assert logs[0] == logs[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_a_checkpoint(tmp_path, number):
    handler = signal.getsignal(number)
    outcome = trainer(tmp_path / "a", family=Interrupted(number, at=7), schedule="cosine").run()
    assert (outcome.iterations, outcome.reason, outcome.signal) == (7, number.name, number)
    assert signal.getsignal(number) is handler
    assert load_checkpoint(tmp_path / "a" / "checkpoint.pt")["iteration"] == 7
    resumed, straight = trainer(tmp_path / "a", schedule="cosine"), trainer(tmp_path / "b", schedule="cosine")
    assert resumed.run().iterations == 30
    straight.run()
    assert same(load_checkpoint(resumed.checkpoint), load_checkpoint(straight.checkpoint))


def test_iterations_may_be_extended(tmp_path):
    for count in (5, 20, 30):
        trainer(tmp_path / "a", iterations=count).run()
    straight = trainer(tmp_path / "b")
    straight.run()
    assert same(load_checkpoint(tmp_path / "a" / "checkpoint.pt"), load_checkpoint(straight.checkpoint))
    assert trainer(tmp_path / "a", iterations=3).run().iterations == 30, "nothing is left to do"


def test_a_time_limit_stops_with_a_checkpoint(tmp_path):
    run = trainer(tmp_path, time_limit=1e-9)
    outcome = run.run()
    assert outcome.reason == "time limit"
    assert outcome.iterations < 30
    assert load_checkpoint(run.checkpoint)["iteration"] == outcome.iterations
    assert trainer(tmp_path).run().reason == "finished"


def test_an_algorithm_s_own_parameters_resume(tmp_path):
    first = trainer(tmp_path / "a", algorithm=learner(LearnedScale), iterations=12)
    first.run()
    resumed, straight = (trainer(tmp_path / name, algorithm=learner(LearnedScale)) for name in ("a", "b"))
    assert resumed.run().iterations == straight.run().iterations == 30
    assert abs(resumed.algorithm.scale.item() - 0.1) > 1e-3, "it is trained"
    assert resumed.algorithm.calls == 30
    assert same(load_checkpoint(resumed.checkpoint), load_checkpoint(straight.checkpoint))


def test_a_learned_rate_of_seven_resumes_as_seven(tmp_path):
    run = trainer(tmp_path, algorithm=learner(LearnedScale), iterations=2)
    run.run()
    with torch.no_grad():
        run.algorithm.scale.fill_(7.0)
    run.save()
    again = trainer(tmp_path, algorithm=learner(LearnedScale), iterations=2)
    again.run()
    assert again.algorithm.scale.item() == 7.0


def test_checkpoints_of_the_network_alone(tmp_path):
    """As older versions wrote them: they resume, unless the algorithm has parameters that they do not hold."""
    for name, kind in (("maml", fastmeta.MAML), ("scale", LearnedScale)):
        run = trainer(tmp_path / name, algorithm=learner(kind), iterations=4)
        run.run()
        state = load_checkpoint(run.checkpoint)
        del state["algorithm"]
        save_checkpoint(run.checkpoint, state)
    trainer(tmp_path / "straight").run()
    trainer(tmp_path / "maml").run()
    assert same(*(load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("maml", "straight")))
    message = r"lacks calls, scale: the version of fastmeta that wrote it kept the network alone\. It can be evaluated"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "scale", algorithm=learner(LearnedScale)).run()


def test_starting_over(tmp_path):
    trainer(tmp_path).run()
    other = trainer(tmp_path, seed=5, iterations=4)
    assert other.run(resume=False).iterations == 4
    assert load_checkpoint(other.checkpoint)["configuration"]["seed"] == 5
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4


def test_another_configuration_is_named(tmp_path):
    trainer(tmp_path, settings={"inner_lr": 0.05, "model": "mlp", "gone": 1}).run()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    other = trainer(tmp_path, settings={"inner_lr": 0.1, "model": "mlp"}, meta_batch=6, iterations=99)
    with pytest.raises(ValueError, match="holds a run of another configuration") as caught:
        other.run()
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == ["  gone: 1 -> (unset)", "  inner_lr: 0.05 -> 0.1", "  meta_batch: 4 -> 6"]
    assert "--no-resume" in lines[-1]
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_folder_has_one_run_at_a_time(tmp_path):
    message = "another run is writing to .*; wait for it, or choose another folder"
    with exclusive(tmp_path), pytest.raises(RuntimeError, match=message):
        trainer(tmp_path).run()
    trainer(tmp_path).run()


def test_a_folder_has_one_run_at_a_time_without_fcntl(tmp_path, monkeypatch):
    """As on Windows: `msvcrt` refuses a byte that is locked with PermissionError."""
    locked = set()

    def locking(_, mode, count):
        assert count == 1
        if mode == "unlock":
            locked.remove("byte")
        elif locked:
            raise PermissionError(13, "Permission denied")
        else:
            locked.add("byte")

    msvcrt = SimpleNamespace(LK_NBLCK="lock", LK_UNLCK="unlock", locking=locking)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    with exclusive(tmp_path), pytest.raises(RuntimeError, match="another run is writing to"):
        trainer(tmp_path).run()
    trainer(tmp_path).run()
    assert not locked


@pytest.mark.parametrize("at", [1, 12])
def test_divergence_keeps_the_last_good_checkpoint(tmp_path, at):
    trainer(tmp_path, iterations=5).run()
    with pytest.raises(RuntimeError, match=r"diverged: the meta-loss is nan at iteration .* Lower inner_lr"):
        trainer(tmp_path, family=Broken(at)).run()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 5


def test_broken_parameters_are_never_saved(tmp_path):
    run = trainer(tmp_path, iterations=5)
    run.run()
    before = run.checkpoint.read_bytes()
    with torch.no_grad():
        run.algorithm.module[2].bias.fill_(math.nan)
    with pytest.raises(RuntimeError, match=r"module\.2\.bias is not finite.*keeps the last good state"):
        run.save()
    assert run.checkpoint.read_bytes() == before
