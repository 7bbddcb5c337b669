"""What users do around a meta-step: optimisers, copies, processes, modes, trees of tensors, losses of their own."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import two_processes
from meta_steps import (
    Batch,
    assert_agrees_with_reference,
    assert_close,
    classification,
    mlp,
    regression,
    relative,
    step,
    with_backend,
)
from torch import nn

import fastmeta


def learner_of(model=None, algorithm=fastmeta.MAML, **options):
    options = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.3), "inner_steps": 2} | options
    return algorithm(mlp(2, 5, 1) if model is None else model, **options)


def conv_net(track):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=track), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    ).double()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_optimisers_schedulers_and_clipping_need_no_change(optimizer):
    def train(backend):
        torch.manual_seed(1)
        learner = learner_of(backend=backend)
        outer = optimizer(learner.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, 4)
        norms = []
        for _ in range(4):
            outer.zero_grad()
            learner(*batch).loss.backward()
            norms.append(nn.utils.clip_grad_norm_(learner.parameters(), 0.01))
            outer.step()
            schedule.step()
        assert min(norms) > 0.01  # clipped every time
        return dict(learner.module.state_dict())

    batch = regression()
    assert_close(train("torch"), train("reference"), 1e-9)


def test_state_dict_copies_and_pickles_hold_the_learner():
    learner, batch = learner_of(), regression()
    want = step(learner, batch)
    other = learner_of()
    assert relative(step(other, batch).losses, want.losses) > 1e-3
    assert list(learner.state_dict()) == [f"module.{name}" for name in learner.module.state_dict()]
    other.load_state_dict(learner.state_dict())
    for same in (other, copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert same.module is not learner.module
        got = step(same, batch)
        assert torch.equal(got.losses, want.losses)
        assert_close(got.grads, want.grads, 1e-14)
        with torch.no_grad():
            next(same.module.parameters()).add_(1.0)
        assert not torch.equal(step(same, batch).losses, want.losses)
        assert torch.equal(step(learner, batch).losses, want.losses)


def test_data_parallel_processes_equal_one_process_on_all_tasks(tmp_path):
    batch = regression(tasks=4)
    torch.save(tuple(batch), tmp_path / "batch.pt")
    script = Path(two_processes.__file__)
    workers = [subprocess.Popen([sys.executable, script, str(rank), tmp_path]) for rank in (0, 1)]
    want = two_processes.gradients(two_processes.learner(), batch)
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    for rank in (0, 1):
        for got in torch.load(tmp_path / f"{rank}.pt"):  # without and with static_graph
            for g, w in zip(got, want, strict=True):
                assert_close(dict(enumerate(g)), dict(enumerate(w)), 1e-12)


@pytest.mark.parametrize("algorithm", [fastmeta.MAML, fastmeta.Reptile])
def test_autocast_outside_changes_nothing(algorithm):
    model = mlp(2, 33, 1).float()
    batch, learner = regression(dtype=torch.float32), learner_of(model, algorithm)
    want = step(learner, batch)

    def own_loss():
        learner.zero_grad()
        outputs = learner.adapt(batch.support_x, batch.support_y)(batch.query_x)
        (outputs - batch.query_y).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    want_own = own_loss()
    with torch.autocast("cpu", torch.bfloat16):
        got, got_own = step(learner, batch), own_loss()
        value = with_backend(learner, "reference")(*batch).loss
    assert torch.equal(got.losses, want.losses)
    assert relative(value, want.losses.mean()) < 1e-6
    for name, expected in want.grads.items():
        assert torch.equal(got.grads[name], expected)
        assert torch.equal(got_own[name], want_own[name])


def test_frozen_and_tied_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.second.weight = self.first.weight
            self.second.bias.requires_grad_(False)

        def forward(self, x):
            return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))

    model, batch = Tied().double(), classification(4)
    learner = assert_agrees_with_reference(model, batch)
    phi = learner.adapt(batch.support_x, batch.support_y).parameters()
    assert list(phi) == ["first.weight", "first.bias", "last.weight", "last.bias"]
    assert model.second.bias.grad is None


def test_eval_mode_reads_running_statistics():
    model = conv_net(track=True).eval()
    model[1].running_mean.normal_()
    model[1].running_var.fill_(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = assert_agrees_with_reference(model, classification(1, 4, 4))
    one = classification(1, 4, 4)
    outputs = learner.adapt(one.support_x, one.support_y, steps=0)(one.query_x)
    assert relative(outputs[0], model(one.query_x[0])) < 1e-12
    # statistics are read anew at every call
    model[1].running_mean.add_(1.0)
    outputs = learner.adapt(one.support_x, one.support_y, steps=0)(one.query_x)
    assert relative(outputs[0], model(one.query_x[0])) < 1e-12


def test_training_mode_warns_once_of_running_statistics_and_leaves_them():
    model, batch = conv_net(track=True), classification(1, 4, 4)
    before = {name: (b.clone(), b._version) for name, b in model.named_buffers()}
    learner = fastmeta.MAML(model, inner_optimizer=fastmeta.SGD(lr=0.3))
    with pytest.warns(UserWarning, match="BatchNorm2d '1' tracks running statistics"):
        got = step(learner, batch)
    step(learner, batch)  # a second warning would be an error
    learner.adapt(batch.support_x, batch.support_y)(batch.query_x)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name][0])
        assert buffer._version == before[name][1]
    plain = conv_net(track=False)
    plain.load_state_dict({name: p for name, p in model.state_dict().items() if name in plain.state_dict()})
    same = fastmeta.MAML(plain, inner_optimizer=fastmeta.SGD(lr=0.3))
    assert torch.equal(step(same, batch).losses, got.losses)


def test_task_losses_take_weights_of_the_users_own():
    learner, batch, weights = learner_of(), regression(), torch.tensor([0.2, 3.0, 0.0], dtype=torch.float64)

    def weighted(learner):
        learner.zero_grad()
        (learner(*batch).task_losses * weights).sum().backward()
        return {name: p.grad.clone() for name, p in learner.module.named_parameters()}

    got = weighted(learner)
    assert_close(got, weighted(with_backend(learner, "reference")), 1e-10)
    assert relative(got, step(learner, batch).grads) > 0.1


@pytest.mark.parametrize("how", ["loss", "learners"])
def test_a_graph_is_kept_for_twice_and_cannot_be_differentiated_twice(how):
    learner, batch = learner_of(), regression()
    params = list(learner.parameters())

    def loss():
        if how == "loss":
            return learner(*batch).loss
        return F.mse_loss(learner.adapt(batch.support_x, batch.support_y)(batch.query_x), batch.query_y)

    value = loss()
    first = torch.autograd.grad(value, params, retain_graph=True)
    second = torch.autograd.grad(value, params)
    for a, b in zip(first, second, strict=True):
        assert relative(b, a) < 1e-14
    grads = torch.autograd.grad(loss(), params, create_graph=True)
    assert relative(grads[0], first[0]) < 1e-14
    with pytest.raises(RuntimeError, match=r'cannot be differentiated again.*backend="reference"'):
        grads[0].sum().backward()


def test_no_grad_builds_no_graph_and_gives_the_same_values():
    learner, batch = learner_of(), regression()
    want = step(learner, batch)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = learner(*batch)
            learners = learner.adapt(batch.support_x, batch.support_y)
            outputs = learners(batch.query_x)
        assert not out.loss.requires_grad
        assert not outputs.requires_grad
        assert not any(p.requires_grad for p in learners.parameters().values())
        assert torch.equal(out.task_losses, want.losses)
        assert relative(outputs, want.outputs) < 1e-14
    assert all(torch.equal(p.grad, want.grads[name]) for name, p in learner.module.named_parameters())
    # learners made with a graph serve evaluation too
    learners = learner.adapt(batch.support_x, batch.support_y)
    with torch.no_grad():
        assert not learners(batch.query_x).requires_grad


def test_evaluation_keeps_neither_trajectory_nor_activations():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Alive(TorchDispatchMode):
        """The most tensors of the trajectory's size that live at once."""

        def __init__(self):
            super().__init__()
            self.refs, self.most = [], 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            import weakref

            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= 3 * 500:
                self.refs.append(weakref.ref(out))
            self.refs = [r for r in self.refs if r() is not None]
            self.most = max(self.most, len(self.refs))
            return out

    def most(steps, grad):
        learner = learner_of(mlp(2, 200, 1), inner_steps=steps)
        with torch.set_grad_enabled(grad):
            learner(*batch)
            with Alive() as alive:
                learner(*batch)
        return alive.most

    batch = regression()
    assert most(12, grad=False) <= most(2, grad=False)
    assert most(12, grad=True) > most(2, grad=True) + 5


def test_steps_of_adapt_override_inner_steps():
    learner, batch = learner_of(inner_steps=1), regression()
    support = batch.support_x, batch.support_y
    longer = learner_of(learner.module, inner_steps=3).adapt(*support).parameters()
    assert_close(learner.adapt(*support, steps=3).parameters(), longer, 1e-14)
    theta = dict(learner.module.named_parameters())
    for name, phi in learner.adapt(*support, steps=0).parameters().items():
        assert torch.equal(phi, theta[name].expand(3, *theta[name].shape))
    assert relative(learner.adapt(*support).parameters(), longer) > 1e-3
    with pytest.raises(ValueError, match="steps must be an integer of at least 0 or None"):
        learner.adapt(*support, steps=-1)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 2), nn.Linear(2, 3)

    def forward(self, x, scale):
        code = torch.tanh(self.encode(x)) * scale
        return code, self.decode(code)


def test_trees_of_inputs_and_outputs_with_no_targets():
    def reconstruction(outputs, targets):
        assert targets is None
        code, decoded = outputs
        return decoded.square().mean() + 0.1 * code.abs().sum(1).mean()

    def data(samples):
        return torch.randn(2, samples, 3).double(), torch.rand(2, samples, 1).double()

    support, query = data(5), data(4)
    model, results = Autoencoder().double(), []
    for support_x, query_x in ((support, query), tuple({"scale": s, "x": x} for x, s in (support, query))):
        batch = Batch(support_x, None, query_x, None)
        learner = assert_agrees_with_reference(model, batch, loss=reconstruction)
        code, decoded = learner(*batch).outputs
        assert code.shape == (2, 4, 2)
        assert decoded.shape == (2, 4, 3)
        learners = learner.adapt(support_x)
        assert relative(learners(query_x)[1], decoded) < 1e-14
        results.append(step(learner, batch).grads)
    assert_close(*results, 1e-13)


def test_targets_may_be_a_tree_and_outputs_a_dict():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.classes, self.value = nn.Linear(4, 3), nn.Linear(4, 1)

        def forward(self, x):
            return {"classes": self.classes(x).tanh(), "value": self.value(x)}

    def loss(outputs, targets):
        return F.cross_entropy(outputs["classes"], targets["label"]) + (outputs["value"] - targets["y"]).square().mean()

    def targets(labels):
        return {"label": labels, "y": torch.randn(*labels.shape, 1).double()}

    batch = classification(4)
    batch = batch._replace(support_y=targets(batch.support_y), query_y=targets(batch.query_y))
    assert_agrees_with_reference(Heads().double(), batch, loss=loss)


def test_token_indices_and_label_smoothing():
    model = nn.Sequential(nn.Embedding(11, 4, padding_idx=2), nn.Flatten(), nn.Linear(12, 3)).double()
    batch = classification(3)
    batch = batch._replace(support_x=torch.randint(11, (2, 5, 3)), query_x=torch.randint(11, (2, 3, 3)))
    smooth = functools.partial(F.cross_entropy, label_smoothing=0.3)
    losses = [
        step(assert_agrees_with_reference(model, batch, loss=loss), batch).losses
        for loss in (smooth, nn.CrossEntropyLoss(label_smoothing=0.3))
    ]
    assert relative(*losses) < 1e-14
    assert relative(step(fastmeta.MAML(model), batch).losses, losses[0]) > 1e-3


def test_the_module_may_change_between_calls():
    """Its dtype, what is trainable, its mode, its values: as if the learner had been made afterwards."""
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1))
    learner, batch = learner_of(model), regression(dtype=torch.float32)

    def as_new(batch):
        torch.manual_seed(5)
        got = step(learner, batch)
        torch.manual_seed(5)
        want = step(learner_of(model), batch)
        assert torch.equal(got.losses, want.losses)
        assert got.grads.keys() == want.grads.keys()
        assert all(torch.equal(got.grads[name], want.grads[name]) for name in want.grads)
        return got

    training = as_new(batch)
    evaluating = (model.eval(), as_new(batch))[1]
    assert not torch.equal(training.losses, evaluating.losses)
    wide = Batch(*(x.double() for x in batch))
    model.double()
    assert relative(as_new(wide).losses, evaluating.losses) < 1e-6
    assert as_new(wide).losses.dtype == torch.float64
    model[0].requires_grad_(False)
    for p in model[0].parameters():
        p.grad = None
    assert list(as_new(wide).grads) == ["3.weight", "3.bias"]
    model[0].requires_grad_(True)
    assert len(as_new(wide).grads) == 4
    model[1] = nn.Sigmoid()
    with torch.no_grad():
        model[3].weight.mul_(2.0)
    as_new(wide)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model must have a trainable parameter, got none"):
        learner(*wide)


@pytest.mark.parametrize("size", [3, 4, 7], ids=["wraps", "wraps-unevenly", "whole"])
@pytest.mark.parametrize("memory", ["save", "recompute"])
def test_inner_batches_go_round_the_support_set(size, memory):
    model, batch = mlp(2, 5, 1), regression(support=7)
    learner = assert_agrees_with_reference(model, batch, loss=F.mse_loss, inner_batch_size=size, inner_steps=4)
    again = with_backend(learner, "torch", memory=memory)
    assert_close(step(again, batch).grads, step(learner, batch).grads, 1e-12)
    phi = learner.adapt(batch.support_x, batch.support_y).parameters()
    for t in range(3):
        copied = copy.deepcopy(model)
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.3)
        for k in range(4):
            rows = [(k * size + i) % 7 for i in range(size)]
            optimizer.zero_grad()
            F.mse_loss(copied(batch.support_x[t, rows]), batch.support_y[t, rows]).backward()
            optimizer.step()
        for name, p in copied.named_parameters():
            assert relative(phi[name][t], p) < 1e-12


def test_a_loss_of_the_users_own_may_hold_mse_loss():
    x, query = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double()

    def loss(outputs, targets):
        return 2 * F.mse_loss(outputs, targets) + outputs.square().mean()

    grads = []
    for backend in ("torch", "reference"):
        model.zero_grad()
        maml = fastmeta.MAML(
            model, inner_loss=loss, inner_optimizer=fastmeta.SGD(lr=0.1), inner_steps=2, backend=backend
        )
        maml(x, 2 * x, query, query).loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-14)


def test_a_compiled_step_refuses_draws_it_cannot_repeat():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x + 0.1 * torch.randn_like(x))

    maml = fastmeta.MAML(Noisy(), compile=True)
    x, y = torch.randn(2, 5, 4), torch.randint(3, (2, 5))
    with pytest.raises(ValueError, match="compile=True cannot take random numbers"):
        maml(x, y, x, y)


def test_a_precision_that_no_backend_has_is_refused():
    maml = fastmeta.MAML(nn.Linear(4, 3), precision="bfloat16")
    x, y = torch.randn(2, 5, 4), torch.randint(3, (2, 5))
    with pytest.raises(ValueError, match='precision="bfloat16" needs Triton kernels'):
        maml(x, y, x, y)
