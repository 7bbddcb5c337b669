"""Launches that are kept and made again: the same bits as launches of the launchers' own, or none at all."""

from __future__ import annotations

import copy
import threading
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from convolutions import batch_of, conv, net
from kernel_runs import DEVICE, needs_kernels
from meta_steps import Batch, mlp, regression
from torch import nn

import fastmeta

pytestmark = needs_kernels


def perceptron():
    return mlp(2, 5, 1), regression, F.mse_loss


def convolutional():
    return (
        net(*conv(2, 5, pool=nn.MaxPool2d(2), bias=False), image=(2, 6, 5)),
        lambda: batch_of(2, 6, 5),
        F.cross_entropy,
    )


SETTINGS = {
    "plain": (perceptron, {}),
    "chunked, batches, Adam": (
        perceptron, {"task_chunk": 2, "inner_batch_size": 3, "inner_optimizer": fastmeta.Adam(lr=0.1)}
    ),
    "rates of parameters": (perceptron, {"inner_optimizer": fastmeta.SGD(lr=fastmeta.PerParameter(0.1))}),
    "rates, first order, chunked": (
        perceptron,
        {"inner_optimizer": fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.1)), "first_order": True, "task_chunk": 2},
    ),
    "images": (convolutional, {}),
    "images, statistics of the support set, recomputed": (
        convolutional, {"bn_statistics": "support", "memory": "recompute", "task_chunk": 1}
    ),
}  # fmt: skip


def cast(batch):
    return Batch(*(x.to(DEVICE, torch.float32) if x.is_floating_point() else x.to(DEVICE) for x in batch))


@pytest.fixture
def played(monkeypatch):
    """The tapes that were played, one entry a time."""
    from fastmeta.kernels import launch

    times, real = [], launch.Tape.play
    monkeypatch.setattr(launch.Tape, "play", lambda tape: (times.append(tape), real(tape))[1])
    return times


@contextmanager
def without_tapes():
    from fastmeta.engine.backends import taped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taped, "can_be_taped", lambda: False)
        yield


def learners_of(setting, **more):
    make, options = SETTINGS[setting]
    model, batch, loss = make()
    made = [
        fastmeta.MAML(
            copy.deepcopy(model).to(DEVICE, torch.float32), inner_loss=loss, backend="triton", proof="off",
            **({"inner_steps": 2, "inner_optimizer": fastmeta.SGD(lr=0.1)} | copy.deepcopy(options) | more),
        )
        for _ in range(2)
    ]  # fmt: skip
    return *made, lambda: cast(batch())


@pytest.mark.parametrize("setting", SETTINGS)
def test_launches_made_again_train_as_new_ones_do(setting, played):
    """Whatever is differentiated: the loss, single tasks' losses, or nothing."""
    learner, plain, batch = learners_of(setting)
    optimizers = [torch.optim.Adam(one.parameters(), lr=0.05) for one in (learner, plain)]

    def step(one, optimizer, i, data):
        optimizer.zero_grad()
        if i % 2:
            out = one.accumulate(*data)
        else:
            out = one(*data)
            (out.loss + (out.task_losses * torch.arange(len(out.finite), device=DEVICE)).sum() * i).backward()
        optimizer.step()
        return out

    kept = []
    for i in range(4):
        data = batch()
        out = step(learner, optimizers[0], i, data)
        with without_tapes():
            want = step(plain, optimizers[1], i, data)
        kept.append((out, want))
    for out, want in kept:  # at the very end: a later step must not write into what an earlier one gave
        torch.testing.assert_close(tuple(out), tuple(want), rtol=0, atol=0)
    for p, q in zip(learner.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    assert len(played) == 2, "kept at the second step"


def test_evaluation_has_a_tape_of_its_own_in_any_mode(played):
    learner, plain, batch = learners_of("plain")
    for mode in (torch.inference_mode, torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        data = batch()
        with mode():
            out = learner(*data)
            with without_tapes():
                assert torch.equal(out.task_losses, plain(*data).task_losses)
    assert len(played) == 2


def test_parameters_in_other_memory_and_of_other_strides_are_read(played):
    learner, plain, batch = learners_of("images")
    for _ in range(3):
        for p, q in zip(learner.parameters(), plain.parameters(), strict=True):
            p.data = p.data.clone() if p.dim() < 2 else p.data.transpose(0, 1).contiguous().transpose(0, 1)
            q.data = p.data.clone()
        data = batch()
        got = learner(*data).loss
        with without_tapes():
            assert torch.equal(got, plain(*data).loss)
    assert played


@pytest.mark.filterwarnings("ignore:non-finite values")  # nobody writes the results
def test_what_watches_launches_sees_all_of_them():
    from fastmeta.kernels import launch

    learner, _, batch = learners_of("plain")
    for _ in range(3):
        learner(*batch())
    seen = []
    with launch.through(lambda kernel, *_: seen.append(kernel.__name__)):
        learner(*batch())
    assert seen == ["adapt_kernel", "apply_kernel", "adjoint_kernel", "mean_kernel"]


def test_an_outer_loss_of_the_users_own_is_run_as_ever(played):
    learner, _, batch = learners_of("plain", outer_loss=F.l1_loss)
    for _ in range(3):
        learner(*batch()).loss.backward()
    assert not played


def test_threads_take_turns():
    learner, _, batch = learners_of("plain")
    batches = [batch() for _ in range(2)]
    want = [learner(*data).task_losses.detach() for data in batches]
    wrong = []

    def work(data, losses):
        wrong.extend(data for _ in range(2) if not torch.equal(learner(*data).task_losses.detach(), losses))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(batches, want, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("why", ["memory", "too much"])
def test_without_memory_for_it_there_is_no_tape(why, monkeypatch, played):
    from fastmeta.engine.backends import taped

    learner, plain, batch = learners_of("plain")
    if why == "memory":

        def recording(_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(taped.Tape, "recording", recording)
    else:
        monkeypatch.setattr(taped.Tapes, "_too_much", lambda _: True)
    for _ in range(3):
        data = batch()
        got = learner(*data).loss
        with without_tapes():
            assert torch.equal(got, plain(*data).loss)
    assert not played
