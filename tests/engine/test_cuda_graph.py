"""Meta-steps replayed as graphs: the same results, the same `.grad`, or a reason why not.

A stand-in for the capture runs the step again, on the very tensors that it was recorded with, and writes the results
into the same memory. The capture itself is tested in test_cuda_graph_gpu.py.
"""

from __future__ import annotations

import copy
import warnings

import graphed
import pytest
import torch
import torch.nn.functional as F
from graphed import ALGORITHMS, Noisy, TreeNet, assert_equal, assert_trains_alike, gradient, pair, replaying
from meta_steps import Batch, classification, mlp, regression
from torch import nn
from torch.utils import _pytree as pytree

import fastmeta
from fastmeta.engine import recent
from fastmeta.engine.backends import cuda_graph


@pytest.fixture
def recorded(monkeypatch):
    """Graphs on a CPU; the list holds the results of each."""
    made = []

    def record(step, _):
        results = step()
        tensors = [x for x in pytree.tree_leaves(results) if isinstance(x, torch.Tensor)]
        for x in tensors:  # a capture computes nothing
            x.fill_(float("nan") if x.is_floating_point() else 0)
        made.append(tensors)

        def replay():
            again = [x for x in pytree.tree_leaves(step()) if isinstance(x, torch.Tensor)]
            with torch.inference_mode():  # whatever mode they were made in
                for x, y in zip(tensors, again, strict=True):
                    x.copy_(y)

        return replay, results

    monkeypatch.setattr(cuda_graph, "record", record)
    monkeypatch.setattr(cuda_graph, "DEVICES", ("cpu",))
    return made


@pytest.mark.parametrize("options", [
    {}, {"memory": "recompute"}, {"task_chunk": 2}, {"outer_loss": F.l1_loss}, {"inner_batch_size": 3},
], ids=lambda options: next(iter(options), "plain"))  # fmt: skip
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_replayed_steps_train_as_ordinary_ones_do(recorded, algorithm, options):
    assert_trains_alike(pair(algorithm, **options), [regression() for _ in range(5)])
    assert len(recorded) == 1


def test_a_compiled_step_is_replayed(recorded):
    assert_trains_alike(pair(compile=True, inner_steps=1), [regression() for _ in range(4)])
    assert len(recorded) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_kernels_are_replayed(recorded, algorithm):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off")
    learners = pair(algorithm, mlp(2, 5, 1).float(), inner_steps=1, backend="triton")
    assert_trains_alike(learners, [regression(dtype=torch.float32) for _ in range(4)])
    assert len(recorded) == 1


@pytest.mark.parametrize("bn_statistics", ["batch", "support"])
def test_images_labels_and_batch_norm_are_replayed(recorded, bn_statistics):
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=False), nn.Tanh(), nn.Flatten(),
        nn.Linear(48, 3),
    ).double()  # fmt: skip
    learners = pair("maml", model, inner_loss=F.cross_entropy, bn_statistics=bn_statistics)
    assert_trains_alike(learners, [classification(1, 4, 4) for _ in range(4)])
    assert len(recorded) == 1


def test_rates_starts_and_weights_are_read_anew_in_every_replay(recorded):
    """They are made by plain PyTorch before each meta-step, in new memory."""

    class All(fastmeta.MAML):
        first = 1.0

        def adapts(self, name):
            return not name.startswith("0")

        def start(self, theta, support):
            return theta + 0.1 * support.targets[0].mean((1, 2))[:, None]

        def weights(self, steps):
            return [0.0] * (steps - 1) + [self.first, 1.0]

    made = []
    for graphed_too in (True, False):
        torch.manual_seed(3)
        learner = All(
            mlp(2, 5, 1), inner_loss=F.mse_loss, inner_steps=2, cuda_graph=graphed_too,
            inner_optimizer=fastmeta.SGD(lr=fastmeta.PerLayerPerStep(0.3), momentum=0.5),
        )  # fmt: skip
        optimizer, outs = torch.optim.SGD(learner.parameters(), lr=0.05), []
        for learner.first in (1.0, 0.7, 0.4, 0.1):
            batch = Batch(*(x.clone() for x in regression()))
            batch.support_x.requires_grad_()
            optimizer.zero_grad()
            out = learner(*batch)
            out.loss.backward()
            optimizer.step()
            outs.append((out.loss.detach(), out.outputs, batch.support_x.grad))
        made.append((outs, [p.detach().clone() for p in learner.parameters()]))
    assert_equal(*made)
    assert len(recorded) == 1


def test_dropout_draws_anew_in_every_replay(recorded):
    model = nn.Sequential(nn.Linear(2, 9), nn.Dropout(0.5), nn.Linear(9, 1)).double()
    assert_trains_alike(pair("maml", model), [regression()] * 4)
    learner, _ = pair("maml", model)
    assert len({learner(*regression()).loss.item() for _ in range(4)}) == 4
    assert len(recorded) == 2


def test_trees_of_inputs_and_outputs_are_replayed(recorded):
    batches = []
    for _ in range(4):
        x, y, q, z = regression()
        batches.append(Batch({"x": x, "extra": y}, y, {"x": q, "extra": z + 1}, {"target": z}))

    def inner(outputs, y):
        return (outputs[0] - y).square().mean()

    def outer(outputs, y):
        return (outputs[0] - y["target"]).square().mean()

    assert_trains_alike(pair("maml", TreeNet(), inner_loss=inner, outer_loss=outer), batches)
    assert len(recorded) == 1


def test_strided_and_expanded_data_are_replayed(recorded):
    batches = [regression() for _ in range(3)]
    batches += [Batch(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in regression()))]
    batches += [Batch(*(x[:1].expand_as(x) for x in regression()))]
    # A graph reads memory of its own, where data lie densely: without one, products may sum strided data otherwise.
    dense = [Batch(*(x.contiguous() for x in batch)) for batch in batches]
    assert_trains_alike(pair(), batches, plain_batches=dense)
    assert len(recorded) == 1


def test_reptile_is_replayed_without_a_query_set(recorded):
    assert_trains_alike(pair("reptile"), [regression()[:2] for _ in range(4)])
    assert len(recorded) == 1


@pytest.mark.filterwarnings("ignore:non-finite values")
def test_a_task_that_is_not_finite_is_left_out_of_a_replay(recorded):
    learner, ordinary = pair()
    replaying(learner, regression())
    batch = regression()
    batch.support_x[1, 0, 0] = torch.inf
    outs = [either(*batch) for either in (learner, ordinary)]
    assert learner(*regression()).finite.all()
    for out in outs:
        assert out.finite.tolist() == [True, False, True]
        out.loss.backward()
    assert_equal(gradient(learner), gradient(ordinary))
    assert len(recorded) == 1


@pytest.mark.usefixtures("recorded")
class TestWhatTheUserKeeps:
    def test_results_and_gradients_outlive_later_replays(self):
        learner, ordinary = pair()
        first, second = regression(), regression()
        replaying(learner, first)
        kept, want = learner(*first), ordinary(*first)
        learner(*second)
        assert_equal((kept.loss, kept.task_losses, kept.outputs, kept.finite),
                     (want.loss, want.task_losses, want.outputs, want.finite))  # fmt: skip
        kept.loss.backward()
        want.loss.backward()
        assert_equal(gradient(learner), gradient(ordinary))

    @pytest.mark.parametrize("set_to_none", [True, False])
    def test_gradients_add_up_until_they_are_cleared(self, set_to_none):
        learners, batches = pair(), [regression() for _ in range(3)]
        replaying(learners[0], batches[0])
        for learner in learners:
            learner(*batches[0]).loss.backward()
            learner.zero_grad(set_to_none=set_to_none)
            for batch in batches[1:]:
                learner(*batch).loss.backward()
        assert_equal(gradient(learners[0]), gradient(learners[1]))

    def test_losses_of_several_replays_go_back_together(self):
        learners, batches = pair(), [regression() for _ in range(3)]
        replaying(learners[0], batches[0])
        for learner in learners:
            losses = [learner(*batch).loss for batch in batches]
            losses[0] /= 3
            sum(losses).backward()
        assert_equal(gradient(learners[0]), gradient(learners[1]))

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_task_losses_of_the_last_replay_have_gradients(self, algorithm):
        learners, batch = pair(algorithm), regression()
        replaying(learners[0], regression())
        for learner in learners:
            out = learner(*batch)
            (out.loss + (out.task_losses * torch.tensor([0.2, 3.0, -1.0])).sum()).backward()
        assert_equal(gradient(learners[0]), gradient(learners[1]))

    def test_task_losses_of_an_earlier_replay_raise(self):
        learner, batch = pair()[0], regression()
        replaying(learner, batch)
        stale = learner(*batch)
        with torch.no_grad():
            learner(*batch)  # touches no gradient
        stale.task_losses.sum().backward(retain_graph=True)
        learner(*batch)
        with pytest.raises(RuntimeError, match="differentiate task_losses before the next call"):
            stale.task_losses.sum().backward()

    def test_there_is_no_second_derivative(self):
        learner, batch = pair()[0], regression()
        replaying(learner, batch)
        loss = learner(*batch).loss
        (g, *_) = torch.autograd.grad(loss, list(learner.parameters()), create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            g.sum().backward()


def test_steps_without_gradients_have_a_graph_of_their_own(recorded):
    learner, ordinary = pair()
    replaying(learner, regression())
    for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
        batch = regression()
        with mode():
            got, want = learner(*batch), ordinary(*batch)
        assert not got.loss.requires_grad
        assert_equal((got.loss, got.task_losses, got.outputs), (want.loss, want.task_losses, want.outputs))
    assert len(recorded) == 2


def test_buffers_made_in_inference_mode_serve_outside_of_it(recorded):
    learner, _ = pair()
    with torch.inference_mode():
        replaying(learner, regression())
    assert replaying(learner, regression())(*regression()).loss.isfinite()
    assert len(recorded) == 2


def test_other_shapes_have_graphs_of_their_own(recorded):
    learners = pair()
    sizes = [3, 3, 4, 3, 4, 5, 3]
    assert_trains_alike(learners, [regression(tasks=tasks) for tasks in sizes])
    assert [x.shape[0] for (_, _, x, *_) in recorded] == [3, 4], "5 came but once"


def test_the_oldest_of_many_shapes_go(recorded, monkeypatch):
    monkeypatch.setattr(recent, "MOST", 2)
    learner, _ = pair()
    for tasks in (2, 3, 4, 2):
        replaying(learner, regression(tasks=tasks))
    assert len(recorded) == 4


def test_a_parameter_that_moves_is_recorded_anew(recorded):
    learner, ordinary = pair()
    weight = learner.module[0].weight
    old = weight.data
    replaying(learner, regression())
    elsewhere = old.clone()
    for place, graphs in ((elsewhere, 2), (old, 2), (elsewhere, 2)):
        weight.data = place
        for _ in range(2):
            with torch.no_grad():
                weight.copy_(torch.rand_like(weight))
                ordinary.module[0].weight.copy_(weight)
            batch = regression()
            assert_equal(learner(*batch).loss, ordinary(*batch).loss)
        assert len(recorded) == graphs


def test_graphs_of_a_parameter_that_goes_on_moving_are_few(recorded):
    learner, ordinary = pair()
    weight = learner.module[0].weight

    def move():
        weight.data = weight.data.clone()
        replaying(learner, regression())

    for _ in range(4):
        move()
    with pytest.warns(UserWarning, match="recorded the same meta-step more than 4 times"):
        move()
    for _ in range(2):
        move()
    assert len(recorded) == 7
    graphs = learner._plans.latest_graphs
    assert graphs is not None
    assert graphs.state == "4 recorded, each at the second call of its kind"
    batch = regression()
    assert_equal(learner(*batch).loss, ordinary(*batch).loss)


@pytest.mark.filterwarnings("ignore:cuda_graph=True has recorded")
def test_a_graph_in_use_outlives_others(recorded):
    learner, _ = pair()
    weight = learner.module[0].weight
    home = weight.data
    for graphs in range(1, 7):
        for place in (home, home.clone()):
            weight.data = place
            replaying(learner, regression())
        assert len(recorded) == 1 + graphs, "that of home but once"


def test_frozen_parameters_and_buffers_are_read_where_they_are(recorded):
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double().eval()
    model[0].requires_grad_(False)
    learner, ordinary = pair("maml", model)
    replaying(learner, regression())

    def assert_same(graphs):
        for _ in range(2):
            batch = regression()
            assert_equal(learner(*batch).loss, ordinary(*batch).loss)
        assert len(recorded) == graphs

    before = learner(*(batch := regression())).loss
    for either in (learner, ordinary):
        with torch.no_grad():
            either.module[0].weight += 1.0
            either.module[1].running_mean += 1.0
    assert_same(1)
    assert learner(*batch).loss != before
    for either in (learner, ordinary):
        either.module[1].running_mean = torch.ones(4, dtype=torch.float64)
    assert_same(2)


def test_learners_are_as_ever(recorded):
    learners, batch = pair(), regression()
    for _ in range(3):
        for learner in learners:
            learner.zero_grad()
            outputs = learner.adapt(batch.support_x, batch.support_y)(batch.query_x)
            F.mse_loss(outputs, batch.query_y).backward()
    assert_equal(gradient(learners[0]), gradient(learners[1]))
    assert not recorded


def test_a_graph_of_the_users_takes_the_step_itself(recorded, monkeypatch):
    learner, _ = pair()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    replaying(learner, regression())
    assert not recorded


class TestWithoutAGraph:
    def assert_runs_with_a_reason(self, learners, reason):
        """One warning at the caller's line, the reason in `explain()`, and the ordinary results."""
        batches = [regression() for _ in range(4)]
        with pytest.warns(UserWarning, match="cuda_graph=True runs without a graph") as caught:
            assert_trains_alike(learners, batches)
        assert len(caught) == 1
        assert reason in str(caught[0].message)
        assert caught[0].filename == graphed.__file__
        assert f"CUDA graphs: none: {reason}" in "\n".join(learners[0].explain().splitlines())

    def test_a_module_on_a_cpu_says_so(self):
        learners = pair()
        assert "CUDA graphs: none: the module is on cpu" in learners[0].explain()
        self.assert_runs_with_a_reason(learners, "the module is on cpu, and CUDA graphs are for GPUs")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            learners[0](*regression(tasks=4))  # other shapes, the same reason

    def test_the_reference_says_so(self, recorded):
        self.assert_runs_with_a_reason(pair(backend="reference"), "the reference runs one task at a time")
        assert not recorded

    def test_draws_that_python_seeds_say_so(self, recorded):
        reason = "Python seeds the random numbers drawn inside randn_like"
        self.assert_runs_with_a_reason(pair("maml", Noisy()), reason)
        assert not recorded

    def test_a_broken_capture_says_so_and_is_not_tried_again(self, recorded, monkeypatch):
        tried = []

        def record(_, device):
            tried.append(device)
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

        monkeypatch.setattr(cuda_graph, "record", record)
        reason = "RuntimeError: operation not permitted when stream is capturing"
        self.assert_runs_with_a_reason(pair(), reason)
        assert tried == [torch.device("cpu")]

    def test_what_is_wrong_with_the_data_is_raised_as_ever(self, recorded):
        learner, _ = pair("maml", mlp(4, 3), inner_loss=F.cross_entropy)
        x, y = torch.randn(2, 5, 4, dtype=torch.float64), torch.full((2, 5), 3)
        with pytest.raises(ValueError, match="labels must lie in"):
            learner(x, y, x, y)
        assert not recorded


def test_explain_counts_the_graphs(recorded):
    learner, ordinary = pair()
    assert "CUDA graphs: recorded at the second meta-step on data of a shape" in learner.explain()
    for graphs in (0, 1, 1):
        learner(*regression())
        assert f"CUDA graphs: {graphs} recorded" in learner.explain()
    assert len(recorded) == 1
    assert "CUDA graphs" not in ordinary.explain()


def test_a_copied_learner_records_for_itself(recorded):
    learner, _ = pair()
    replaying(learner, regression())
    replaying(copy.deepcopy(learner), regression())
    assert len(recorded) == 2
