"""backend="auto" where kernels take a program, without a GPU: stand-ins for the device, the clock and the kernels.

The stand-in of the kernels is the torch backend, whose results a test may spoil; the interpreter runs real kernels at
the end. Where the test is about kernels that are right, the meta-step is held against torch ops as well.
"""

from __future__ import annotations

import copy
import json
import re
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from kernel_stand_ins import Machine, StandIn
from meta_steps import mlp, regression
from torch import nn

import fastmeta
from fastmeta.engine import auto
from fastmeta.engine.backends.verdicts import VerdictStore
from fastmeta.engine.meta_step import MetaInputs
from fastmeta.engine.objective import Data

pytest.importorskip("triton")
pytestmark = pytest.mark.proof


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A CPU that counts as a GPU."""
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "cache"))
    return Machine.put_in_place(monkeypatch)


def learner_of(algorithm=fastmeta.MAML, model=None, **options):
    torch.manual_seed(1)
    model = mlp(2, 5, 1).float() if model is None else model
    settings = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.1), "inner_steps": 2}
    return algorithm(model, **(settings | options))


def batch_of(**sizes):
    return regression(dtype=torch.float32, **sizes)


def gradients(learner, batch):
    learner.zero_grad()
    learner(*batch).loss.backward()
    return [p.grad.clone() for p in learner.module.parameters()]


def backend_line(learner):
    (line,) = [line for line in learner.explain().splitlines() if line.startswith("backend: ")]
    return line.removeprefix("backend: ")


@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.FOMAML, fastmeta.Reptile])
def test_kernels_that_are_right_and_faster_run(machine, algorithm):
    learner, batch = learner_of(algorithm), batch_of()
    found = gradients(learner, batch)
    assert backend_line(learner) == "triton (Triton kernels proved right and faster)"
    text = learner.explain()
    assert "one meta-step: Triton kernels 1 ms, torch ops 2 ms" in text
    assert "kernels on tasks 0 and 2, 1 trial: losses" in text
    assert "meta-gradient" in text
    assert " off plain autograd in float64" in text  # the plan's own proof
    assert "auto: found on 20" in text
    assert "read from the cache" not in text
    before = machine.calls
    gradients(learner, batch_of())
    assert machine.calls == before + 1
    plain = learner_of(algorithm, learner.module, backend="torch")
    torch.testing.assert_close(found, gradients(plain, batch))


def test_kernels_that_are_right_and_slower_do_not_run(machine):
    machine.kernels_s = 2e-3  # no faster
    learner = learner_of()
    gradients(learner, batch_of())
    assert backend_line(learner) == "torch (Triton kernels proved right, and torch ops are no slower)"
    assert "one meta-step: Triton kernels 2 ms, torch ops 2 ms" in learner.explain()
    before = machine.calls
    gradients(learner, batch_of())
    assert machine.calls == before


def changed(name, change):
    """What spoils one of a meta-step's results of single tasks."""

    def spoil(step):
        tasks = step.tasks
        if name == "meta-gradient":
            found = tasks.cotangents._replace(start=change(tasks.cotangents.start.clone()))
            return step._replace(tasks=tasks._replace(cotangents=found))
        value = change(tasks.outputs[0].clone() if name == "outputs" else tasks.losses.clone())
        return step._replace(tasks=tasks._replace(**{name: [value] if name == "outputs" else value}))

    return spoil


def mean_changed(step):
    return step._replace(gradient=step.gradient._replace(start=step.gradient.start * 1.001))


def written(place, value):
    def change(x):
        x[place] = value
        return x

    return change


WRONG = {
    "a term of the meta-gradient is missing": (
        changed("meta-gradient", lambda x: x * 0.999), r"meta-gradient \d\.\d+e-\d+ off float64"
    ),
    "one parameter's gradient": (changed("meta-gradient", written((slice(None), slice(20, 21)), 0.0)), "meta-gradient"),
    "losses": (changed("losses", lambda x: x + 1e-3), r"losses .* off float64"),
    "outputs": (changed("outputs", lambda x: x.flip(0)), r"outputs .* off float64"),
    "the last task": (changed("losses", written(-1, 0.0)), r"losses .* off float64"),
    "NaN": (changed("meta-gradient", written((0, 0), float("nan"))), "meta-gradient not finite"),
    "infinity": (changed("outputs", written((2, 0), float("inf"))), "outputs not finite"),
    "the mean over tasks": (mean_changed, "mean meta-gradient"),
    "a task is lost": (
        lambda step: step._replace(tasks=step.tasks._replace(finite=torch.tensor([True, False, True]))),
        r"mean (losses|meta-gradient)|1 task\(s\) come out of them not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_kernels_do_not_run_and_a_warning_says_what_differed(machine, kind):
    machine.spoil, what = WRONG[kind]
    learner, batch = learner_of(), batch_of()
    with pytest.warns(
        UserWarning, match=f"Triton kernels are not used: (their numbers are wrong: )?.*({what}).*report"
    ):
        found = gradients(learner, batch)
    torch.testing.assert_close(found, gradients(learner_of(model=learner.module, backend="torch"), batch))
    assert backend_line(learner).startswith("torch (Triton kernels are not used: ")
    tried = machine.tried
    again = learner_of(model=learner.module)
    gradients(again, batch)  # warnings are errors: it is said once
    assert machine.tried == tried
    assert "read from the cache" in again.explain()
    assert backend_line(again) == backend_line(learner)


def raising(error):
    def now(*_):
        raise error

    return now


@pytest.mark.parametrize("when", ["made", "spoil"])
def test_kernels_that_raise_do_not_run(machine, when):
    setattr(machine, when, raising(RuntimeError("out of shared memory\nand more")))
    learner, batch = learner_of(), batch_of()
    with pytest.warns(UserWarning, match="not used: they raise RuntimeError: out of shared memory. Torch ops run"):
        gradients(learner, batch)
    assert "RuntimeError: out of shared memory" in backend_line(learner)
    gradients(learner_of(), batch)
    assert machine.made_count == 1, "that they raise is kept"


def test_kernels_after_which_nothing_runs_on_the_gpu(machine, monkeypatch):
    broken = []

    def spoil(_):
        broken.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def wait(_):
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    @contextmanager
    def undisturbed(_):
        try:
            yield
        finally:
            wait(_)

    machine.spoil = spoil
    with monkeypatch.context() as patch:
        patch.setattr(auto, "wait", wait)
        patch.setattr(auto, "undisturbed", undisturbed)
        with (
            pytest.warns(UserWarning, match="they raise RuntimeError: CUDA error"),
            pytest.raises(RuntimeError, match=r"nothing runs on it any more.*start it again"),
        ):
            gradients(learner_of(), batch_of())
    learner = learner_of()  # of the next process
    gradients(learner, batch_of())
    assert "CUDA error" in backend_line(learner)
    assert "read from the cache" in learner.explain()
    assert len(broken) == 1


def test_kernels_that_do_not_fit_into_memory_are_tried_again_by_the_next_process(machine):
    machine.made = raising(torch.OutOfMemoryError("no room"))
    for count in (1, 2):
        learner = learner_of()
        gradients(learner, batch_of())
        assert "could not be tried: Triton kernels do not fit into the device's memory" in backend_line(learner)
        gradients(learner, batch_of())
        assert machine.made_count == count


def test_kernels_run_where_torch_ops_do_not_fit_into_memory(machine, monkeypatch):
    run = auto.Asked.run

    def full(asked, backend):
        if asked.tasks > 2 and not isinstance(backend, StandIn):
            raise torch.OutOfMemoryError("no room")
        return run(asked, backend)

    monkeypatch.setattr(auto.Asked, "run", full)
    learner = learner_of()
    gradients(learner, batch_of())
    assert backend_line(learner) == (
        "triton (Triton kernels proved right, and torch ops do not fit into the device's memory)"
    )
    assert machine.timed == 0


def test_what_rounding_decides_is_tried_at_other_values(machine):
    def once_off(step):
        return changed("losses", lambda x: x + 1e-3)(step) if machine.calls == 1 else step

    machine.spoil = once_off
    learner = learner_of()
    gradients(learner, batch_of())
    assert backend_line(learner).startswith("triton")
    assert "2 trials" in learner.explain()


def test_a_verdict_is_found_once(machine):
    learner, batch = learner_of(), batch_of()
    gradients(learner, batch)
    timed = machine.timed
    learner.module[1].note = "another state of the module, and another plan"
    gradients(learner, batch)
    gradients(learner_of(), batch)
    gradients(copy.deepcopy(learner), batch)
    assert machine.timed == timed
    gradients(learner, batch_of(tasks=4))
    assert machine.timed > timed, "another shape is another question"


def test_other_versions_are_another_question(machine, monkeypatch):
    gradients(learner_of(), batch_of())
    timed, real = machine.timed, auto.machine_of

    def updated(device):
        found = real(device)
        return found._replace(versions=found.versions | {"driver": "13000"})

    monkeypatch.setattr(auto, "machine_of", updated)
    gradients(learner_of(), batch_of())
    assert machine.timed > timed


def test_damaged_entries_are_made_again(machine):
    gradients(learner_of(), batch_of())
    timed = machine.timed
    ((path, _),) = VerdictStore().files()
    path.write_text('{"format"', encoding="utf-8")
    gradients(learner_of(), batch_of())
    assert machine.timed > timed
    timed = machine.timed
    gradients(learner_of(), batch_of())
    assert machine.timed == timed


def test_a_folder_that_cannot_be_written(machine, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "file" / "cache"))
    learner = learner_of()
    with pytest.warns(UserWarning, match="cannot be kept, .*FASTMETA_CACHE names another folder"):
        gradients(learner, batch_of())
    timed = machine.timed
    gradients(learner, batch_of(tasks=4))  # warnings are errors: it is said once
    assert machine.timed > timed
    assert backend_line(learner).startswith("triton")
    timed = machine.timed
    learner.module[1].note = "another plan of the same program"
    gradients(learner, batch_of())
    assert machine.timed == timed, "a learner knows what it found"


def test_another_process_was_first(machine):
    asked = []

    def slow_clock(call, times, device):
        if not asked:
            asked.append(1)
            learner_of()(*batch_of())  # it finds kernels faster
            machine.kernels_s = 1.0
        return machine.seconds(call, times, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "seconds", slow_clock)
        learner = learner_of()
        gradients(learner, batch_of())
    assert backend_line(learner).startswith("triton"), "all processes do the same"
    assert "read from the cache" in learner.explain()


def test_proof_off_runs_what_is_known_and_tries_nothing(machine):
    learner = learner_of(proof="off")
    gradients(learner, batch_of())
    assert backend_line(learner) == 'torch (proof="off" leaves out the proof that Triton kernels run after)'
    assert machine.tried == (0, 0)
    gradients(learner_of(), batch_of())
    learner = learner_of(proof="off")
    gradients(learner, batch_of())
    assert backend_line(learner).startswith("triton")


@pytest.mark.usefixtures("machine")
def test_options_that_both_ways_honour():
    for options in ({"memory": "recompute"}, {"task_chunk": 2}, {"inner_batch_size": 3}, {"precision": "tf32"}):
        learner = learner_of(**options)
        gradients(learner, batch_of())
        assert backend_line(learner).startswith("triton")
        for name, value in options.items():
            assert name == "inner_batch_size" or f"{name}={value!r}" in learner.explain()
    assert len(VerdictStore().files()) == 4


@pytest.mark.usefixtures("traced")
def test_an_option_that_kernels_do_not_honour(machine):
    learner = learner_of(compile=True)
    gradients(learner, batch_of())
    assert backend_line(learner).startswith("torch (compile=True asks for compiled torch ops, which Triton kernels")
    assert machine.made_count == 0


@pytest.mark.usefixtures("machine")
def test_calls_that_kernels_do_not_honour():
    class Weighted(fastmeta.MAML):
        def weights(self, steps):
            return [0.0] * steps + [0.5]

    learner = learner_of(Weighted)
    gradients(learner, batch_of())
    assert "no Triton kernel takes the program: the query loss has a weight" in backend_line(learner)
    with pytest.raises(RuntimeError, match="the query loss has a weight"):
        gradients(learner_of(Weighted, backend="triton"), batch_of())
    learner = learner_of(inner_optimizer=fastmeta.SGD(lr=0.1, momentum=0.9))
    learners = learner.adapt(*batch_of()[:2])
    assert "adapt_further needs the state" in backend_line(learner)
    assert learners.adapt_further(*batch_of()[:2]).finite.all()
    gradients(learner, batch_of())
    assert backend_line(learner).startswith("triton")
    learner = learner_of(model=nn.Sequential(nn.Linear(2, 5), nn.Softsign(), nn.Linear(5, 1)))
    gradients(learner, batch_of())
    assert backend_line(learner).startswith("torch (no Triton kernel takes the program")


@pytest.mark.usefixtures("machine")
def test_learners_are_decided_too():
    learner, batch = learner_of(), batch_of()
    learners = learner.adapt(*batch[:2])
    assert backend_line(learner).startswith("triton")
    assert "one adaptation: " in learner.explain()
    y = learners(batch[2])
    assert backend_line(learner).startswith("triton")
    assert "one query pass: " in learner.explain()
    plain = learner_of(model=learner.module, backend="torch").adapt(*batch[:2])(batch[2])
    torch.testing.assert_close(y, plain)


@pytest.mark.usefixtures("machine")
def test_learned_rates():
    learner = learner_of(inner_optimizer=fastmeta.SGD(lr=fastmeta.PerParameter(0.1)))
    gradients(learner, batch_of())
    assert backend_line(learner).startswith("triton")
    assert "gradient of rates" in learner.explain()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("lost", [[0], [0, 1], [0, 1, 2]])
def test_tasks_that_are_not_finite_are_not_compared(lost):
    learner, batch = learner_of(), batch_of()
    batch[0][lost] = float("nan")
    with pytest.warns(RuntimeWarning, match="non-finite values"):
        learner(*batch)
    expected = {1: "kernels on tasks 1 and 2", 2: "kernels on task 2", 3: "no task of the batch has finite data"}
    assert expected[len(lost)] in learner.explain()
    assert len(VerdictStore().files()) == (len(lost) < 3)


def test_bfloat16_runs_where_kernels_are_right_and_nowhere_else(machine):
    learner = learner_of(precision="bfloat16")
    gradients(learner, batch_of())
    assert backend_line(learner) == "triton (Triton kernels proved right, and nothing else has bfloat16)"
    assert machine.timed == 0
    machine.spoil = changed("losses", lambda x: 2 * x)
    message = 'precision="bfloat16" needs Triton kernels.*their numbers are wrong: losses'
    with (
        pytest.warns(UserWarning, match="not used: their numbers are wrong: losses"),
        pytest.raises(ValueError, match=message),
    ):
        gradients(learner_of(precision="bfloat16"), batch_of(tasks=4))


@pytest.mark.parametrize("dtype, precision", [(torch.bfloat16, "bfloat16"), (torch.float16, "tf32")])
def test_operands_are_rounded_as_products_do(dtype, precision):
    x = torch.randn(2000)
    asked = auto.Asked("query pass", None, MetaInputs((x,)), Data((x,), ()), Data((x, x.long()), ()), None)
    found = asked.rounded(precision)
    # float16 has tf32's mantissa; a tie goes up here, and not to the even one
    want = x.to(dtype).float()
    assert (found.at.start[0] != want).sum() <= 2
    assert torch.equal(found.query.inputs[0], found.at.start[0])
    assert torch.equal(found.query.inputs[1], x.long())
    assert asked.rounded("float32") is asked


def test_random_numbers_are_as_without_a_trial(machine):
    def drawing(step):
        torch.rand(3)
        return step

    machine.spoil, machine.kernels_s = drawing, 1.0
    learner, batch = learner_of(), batch_of()
    torch.manual_seed(3)
    learner(*batch)
    found = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(3))
    assert machine.calls


@pytest.mark.usefixtures("machine")
def test_the_facts_are_the_same_in_every_process():
    for outer in (F.mse_loss, lambda y, t: (y - t).abs().mean()):
        gradients(learner_of(outer_loss=outer), batch_of())
    for path, _ in VerdictStore().files():
        facts = json.loads(path.read_text())["facts"]
        assert not re.search("0x[0-9a-f]{6}", json.dumps(facts))
        assert facts["shapes"][0] == [[[3, 7, 2], "torch.float32"]]
        assert set(facts["versions"]) == {"torch", "triton", "cuda", "driver", "fastmeta"}


@pytest.mark.usefixtures("machine")
def test_real_kernels_in_the_interpreter(monkeypatch):
    """A perceptron whole: proof, verdict, and kernels in torch ops' place."""
    knobs = pytest.importorskip("triton").knobs
    if torch.cuda.is_available() or not knobs.runtime.interpret:
        pytest.skip("needs Triton's interpreter")
    from fastmeta.engine.backends.triton import TritonBackend

    def make(engine, graph, tasks, options):
        return TritonBackend(engine, graph, tasks, chunk=options.task_chunk, precision=options.precision)

    times = iter([2.0, 1.0] * 10)
    monkeypatch.setattr(auto, "make_kernels", make)
    monkeypatch.setattr(auto, "seconds", lambda *_: next(times))
    monkeypatch.setattr(auto, "_WARM_UP", 0)
    model, batch = mlp(1, 3, 1).float(), batch_of(tasks=2, support=2, query=2, features=1)
    learner = learner_of(model=model, inner_steps=1)
    found = gradients(learner, batch)
    assert backend_line(learner).startswith("triton (Triton kernels proved right and faster)")
    assert "Triton kernels of mlp_loop" in learner.explain()
    torch.testing.assert_close(found, gradients(learner_of(model=model, inner_steps=1, backend="torch"), batch))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_on_a_gpu(monkeypatch, tmp_path, cuda_graph):
    monkeypatch.setenv("FASTMETA_CACHE", str(tmp_path / "cache"))
    batch = [x.cuda() for x in batch_of(tasks=25, support=10, query=10, features=1)]
    learner = learner_of(model=mlp(1, 40, 40, 1, activation=nn.ReLU).float().cuda(), cuda_graph=cuda_graph)
    gradients(learner, batch)
    text = learner.explain()
    assert "one meta-step: Triton kernels " in text, text
    again = learner_of(model=learner.module, cuda_graph=cuda_graph)
    gradients(again, batch)
    assert "read from the cache" in again.explain()
