"""The outer loop, its checkpoints, and evaluation."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastmeta
from fastmeta.checkpoint import KEYS, exclusive, load_checkpoint, save_checkpoint
from fastmeta.config import Execution, RunConfig, from_flat, make_algorithm, make_family, make_model
from fastmeta.evaluate import Estimate, evaluate, score
from fastmeta.presets import PRESETS
from fastmeta.tasks import Episodes, Sinusoid
from fastmeta.train import TrainConfig, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

PROGRAM = Path(__file__).with_name("kill_and_resume.py")


def learner(kind: type = fastmeta.MAML, *, dtype: torch.dtype = torch.float32, backend: str = "auto"):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(1, 13), nn.Tanh(), nn.Linear(13, 1)).to(dtype)
    optimizer = fastmeta.SGD(lr=0.05)
    return kind(model, inner_loss=F.mse_loss, inner_optimizer=optimizer, inner_steps=2, backend=backend)


def trainer(folder: Path, *, algorithm=None, family=None, settings=None, time_limit=None, **changes) -> Trainer:
    config = replace(TrainConfig(iterations=30, meta_batch=4, outer_lr=0.01), **changes)
    return Trainer(
        algorithm or learner(),
        family or Sinusoid(shots=5, queries=7),
        config=config,
        folder=folder,
        settings=settings,
        time_limit=time_limit,
        checkpoint_seconds=1e9,
    )


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Interrupted(Sinusoid):
    """Sends this process a signal while the n-th meta-batch is sampled."""

    def __init__(self, number: int, at: int) -> None:
        super().__init__(shots=5, queries=7)
        self.number, self.at, self.count = number, at, 0

    def sample(self, tasks, generator):
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.number)
        return super().sample(tasks, generator)


class Fixed(Sinusoid):
    """The same tasks every time."""

    def sample(self, tasks, generator):
        return super().sample(tasks, torch.Generator(generator.device).manual_seed(0))


class Broken(Sinusoid):
    """Yields NaN inputs from the n-th meta-batch on."""

    def __init__(self, at: int) -> None:
        super().__init__(shots=5, queries=7)
        self.at, self.count = at, 0

    def sample(self, tasks, generator):
        self.count += 1
        episodes = super().sample(tasks, generator)
        return Episodes(*(x * math.nan for x in episodes)) if self.count >= self.at else episodes


# Training.


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


# Stopping and resuming.


def test_killed_at_any_point_a_run_ends_in_the_same_bits(tmp_path):
    """SIGKILL, many times: while starting, stepping, writing the checkpoint."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5, "too few kills to mean anything"
    whole, killed = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert whole["iteration"] == 300
    assert same(whole, killed)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    assert [json.loads(line)["iteration"] for line in logs[1]] == list(range(1, 301))
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


# Checkpoint files.


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    run = trainer(tmp_path, iterations=2)
    run.run()
    return run.checkpoint


def test_a_checkpoint_is_plain_data(checkpoint):
    state = load_checkpoint(checkpoint)
    assert state.keys() == {"format", *KEYS}
    model = nn.Sequential(nn.Linear(1, 13), nn.Tanh(), nn.Linear(13, 1))
    model.load_state_dict(state["model"])
    assert {path.name for path in checkpoint.parent.iterdir()} == {"checkpoint.pt", "log.jsonl", ".lock"}


def test_writing_is_atomic(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def full_disk(_, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(checkpoint, {})
    assert checkpoint.read_bytes() == before
    monkeypatch.undo()
    save_checkpoint(checkpoint, load_checkpoint(checkpoint))
    assert {path.name for path in checkpoint.parent.iterdir()} == {"checkpoint.pt", "log.jsonl", ".lock"}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint(checkpoint, share):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged .*; restore it from a copy"):
        trainer(checkpoint.parent).run()
    assert checkpoint.read_bytes() == data[: int(share * len(data))]


def test_no_flipped_byte_goes_unnoticed(checkpoint):
    data = checkpoint.read_bytes()
    good = load_checkpoint(checkpoint)
    refused = 0
    for position in range(5, len(data), len(data) // 60):
        checkpoint.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        try:
            assert same(load_checkpoint(checkpoint), good)  # padding between the records
        except ValueError as error:
            refused += "checkpoint.pt" in str(error)
    assert refused > 20


def test_loading_executes_nothing(checkpoint, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"format": 1, "model": Trap()}, checkpoint)
    with pytest.raises(ValueError, match="holds more than tensors and numbers"):
        load_checkpoint(checkpoint)
    checkpoint.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        load_checkpoint(checkpoint)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    "state, message",
    [
        ([1, 2], "is no checkpoint of fastmeta"),
        ({"model": 1}, "is no checkpoint of fastmeta"),
        ({"format": 99}, "has checkpoint format 99, this version of fastmeta reads 1"),
        ({"format": 1, "model": 1}, "lacks configuration, iteration, optimizer"),
    ],
)
def test_foreign_checkpoint(tmp_path, state, message):
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path / "checkpoint.pt")


# Evaluation.


def test_confidence_interval():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    estimate = Estimate.of(values)
    assert estimate.mean == 4
    assert estimate.half_width == pytest.approx(1.96 * math.sqrt(38 / 3) / 2)
    assert str(estimate) == "4 ± 3.5"
    assert Estimate(0.8312, 0.0123, 600).percent() == "83.12 ± 1.23 %"
    assert math.isnan(Estimate.of(values[:1]).half_width)


def test_score():
    logits = torch.tensor([[[0.0, 1.0], [3.0, 2.0], [0.0, 1.0]], [[1.0, 0.0]] * 3])
    labels = torch.tensor([[1, 0, 0], [0, 0, 0]])
    assert score(logits, labels).tolist() == [pytest.approx(2 / 3), 1.0]
    outputs, targets = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[0.0], [1.0]]])
    assert score(outputs, targets).tolist() == [2.5]


def test_evaluation_is_repeatable():
    results = [evaluate(learner(), Sinusoid(), episodes=50, steps=(0, 3), seed=seed) for seed in (4, 4, 5)]
    assert results[0] == results[1] != results[2]
    assert results[0].keys() == {0, 3}


def test_evaluation_counts_episodes():
    estimate = evaluate(learner(), Sinusoid(), episodes=51, meta_batch=7, steps=(1,))[1]
    assert estimate.count == 51


def test_evaluation_leaves_no_graph_and_no_change():
    algorithm = learner()
    before = {name: p.clone() for name, p in algorithm.named_parameters()}
    evaluate(algorithm, Sinusoid(), episodes=10, steps=(0, 2))
    assert all(torch.equal(p, before[name]) for name, p in algorithm.named_parameters())
    assert all(p.grad is None for p in algorithm.parameters())


def test_diverged_learners_are_counted():
    algorithm = learner()
    algorithm.inner_optimizer = fastmeta.SGD(lr=1e30)
    estimate = evaluate(algorithm, Sinusoid(), episodes=20, steps=(9,))[9]
    assert (estimate.diverged, estimate.mean) == (20, math.inf)
    assert "20 of 20 learners diverged" in str(estimate)


@pytest.mark.parametrize("options", [{"episodes": 0}, {"meta_batch": 0}, {"steps": (-1,)}])
def test_bad_evaluation(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))} must be an integer of at least"):
        evaluate(learner(), Sinusoid(), **options)


# Settings.


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    config = PRESETS[name].config
    model = make_model(config)
    assert make_algorithm(config, model, Execution()).module is model
    assert same(dict(model.state_dict()), dict(make_model(config).state_dict()))
    assert from_flat(config.flat()) == config
    assert PRESETS[name].source.endswith(".")


@pytest.mark.parametrize("name, published, ways", [("maml-5w1s", 0.4, 5), ("maml-20w1s", 0.1, 20)])
def test_learning_rates_are_converted(name, published, ways):
    """The sum over N samples divided by the shots has `ways` times the gradient of the mean."""
    assert PRESETS[name].config.tasks.ways == ways
    assert PRESETS[name].config.algorithm.inner_lr == pytest.approx(published * ways)


def test_published_networks():
    conv4 = make_model(PRESETS["maml-5w1s"].config)
    x = torch.rand(3, 1, 28, 28)
    sizes = [conv4[: 3 * block](x).shape[1:] for block in range(1, 5)]
    assert [tuple(size) for size in sizes] == [(64, 14, 14), (64, 7, 7), (64, 4, 4), (64, 2, 2)]
    pooled = make_model(PRESETS["omniglot"].config.replace({"model": "conv4-pooled", "ways": 7}))
    sizes = [pooled[: 4 * block](x).shape[2] for block in range(1, 5)]
    assert sizes == [14, 7, 3, 1]
    assert pooled(x).shape == (3, 7)
    assert not list(conv4.buffers()), "batch norm tracks no statistics"
    assert sum(p.numel() for p in make_model(PRESETS["sinusoid"].config).parameters()) == 1761


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "conv4"}, "model conv4 does not fit task sinusoid"),
        ({"task": "chess"}, "task must be one of sinusoid, omniglot, got 'chess'"),
        ({"algorithm": "leo"}, "algorithm must be one of maml, fomaml, reptile, got 'leo'"),
        ({"bn_statistics": "running"}, "bn_statistics must be one of batch, support, got 'running'"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        RunConfig().replace(changes)


def test_evaluation_takes_the_whole_support_set():
    config = PRESETS["reptile-5w1s"].config
    model = make_model(config)
    assert make_algorithm(config, model, Execution()).inner_batch_size == 10
    assert make_algorithm(config, model, Execution(), evaluation=True).inner_batch_size is None


def test_omniglot_needs_data():
    with pytest.raises(ValueError, match="task omniglot needs images: name the zip files or folders"):
        make_family(PRESETS["omniglot"].config, None, torch.device("cpu"))


def test_unknown_device():
    with pytest.raises(ValueError, match="device 'abacus' cannot be used"):
        Execution(device="abacus").torch_device()


def test_settings_are_named_once():
    names = list(RunConfig().flat())
    assert len(names) == len(set(names))
    assert set(names) == RunConfig().settings().keys() | asdict(TrainConfig()).keys()
