"""Every message of batch.py: it names the argument, what was expected, what came, and what to do."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.engine.batch import TaskBatch, finite_tasks
from fastmeta.engine.checks import check_batch, check_query, warn_running_statistics
from fastmeta.program.targets import check_class_targets, check_labels, check_per_task_loss

T, N, M, C = 3, 5, 7, 4


def classification():
    """A legal batch of T tasks with N support and M query samples of six features in C classes."""
    support = torch.randn(T, N, 6), torch.randint(C, (T, N))
    return TaskBatch(*support, torch.randn(T, M, 6), torch.randint(C, (T, M)))


def check(
    *, module=None, inner_loss=F.cross_entropy, outer_loss=None, size=None, required=True, statistics="batch", **changes
):
    batch = TaskBatch(**(vars(classification()) | changes))
    check_batch(
        batch,
        module=nn.Linear(6, C) if module is None else module,
        inner_loss=inner_loss,
        outer_loss=outer_loss,
        inner_batch_size=size,
        query_required=required,
        bn_statistics=statistics,
    )


def my_loss(outputs, _):
    return outputs.mean()


def test_sizes_of_a_batch():
    batch = classification()
    assert (batch.tasks, batch.support_samples, batch.query_samples) == (T, N, M)
    tree = TaskBatch({"image": torch.zeros(2, 3, 4), "extra": torch.zeros(2, 3)})
    assert (tree.tasks, tree.support_samples, tree.query_samples) == (2, 3, 0)
    with pytest.raises(AttributeError):
        batch.support_x = None


def test_legal_batches_pass():
    check()
    check(size=N)
    check(query_x=None, query_y=None, required=False)
    check(inner_loss=nn.CrossEntropyLoss(label_smoothing=0.1), outer_loss=my_loss, query_y=None)
    check(inner_loss=my_loss, outer_loss=F.cross_entropy, support_y=None)
    check(
        inner_loss=my_loss,
        support_y=None,
        query_y=(torch.ones(T, M), {"a": torch.ones(T, M, dtype=torch.bool)}),
    )
    check(support_y=torch.rand(T, N, C), query_y=torch.rand(T, M, C))  # class probabilities
    check(support_y=torch.zeros(T, N, 8, 8, dtype=torch.int64))  # dense prediction
    check(support_x=torch.zeros(T, N, 2, dtype=torch.int32), query_x=torch.zeros(T, M, 2, dtype=torch.int64))
    check(support_x=(torch.zeros(T, N, 2), torch.zeros(T, N)))
    # other numbers of samples, one vector or one number a task
    check(support_x=(X, torch.zeros(T, 2, 6), torch.zeros(T, 9, dtype=torch.int64)))
    check(support_x=(X, torch.zeros(T)), query_y=torch.zeros(T), inner_loss=my_loss)
    wide = {name: value.double() for name, value in vars(classification()).items() if name.endswith("x")}
    check(module=nn.Linear(6, C).double(), **wide)


X, Y, W = torch.randn(T, N, 6), torch.zeros(T, N, dtype=torch.int64), nn.Parameter(torch.ones(6))


@pytest.mark.parametrize(
    "changes, error, message",
    [
        # tasks and samples
        (
            {"query_x": torch.zeros(4, M, 6)},
            ValueError,
            r"query_x must hold as many tasks as support_x, 3, got 4",
        ),
        (
            {"support_y": Y[:2]},
            ValueError,
            r"support_y must .* tasks .*: support_x \[3, 5, 6\], support_y \[2, 5\]",
        ),
        (
            {"query_y": torch.zeros(2, M).long()},
            ValueError,
            r"query_y must hold as many tasks as support_x, 3, got 2",
        ),
        ({"support_y": Y[:, :4]}, ValueError, r"support_y must hold as many samples as support_x, 5, got 4"),
        ({"query_y": Y}, ValueError, r"query_y must hold as many samples as query_x, 7, got 5"),
        (
            {"query_x": {"a": X, "b": Y[:, 1:]}, "statistics": "support"},
            ValueError,
            r"query_x\['b'\] .* samples as query_x\['a'\], 5, got 4, as bn_statistics=\"support\"",
        ),
        (
            {"support_x": {"a": X, "b": Y[:, 1:]}, "size": 2},
            ValueError,
            r"support_x\['b'\] .* samples as support_x\['a'\], 5, got 4, as inner_batch_size",
        ),
        ({"support_x": {"a": X, "b": W[:3]}, "size": 2}, ValueError, r"support_x\['b'\] must have .* \[tasks, samples"),
        # nothing there
        ({"support_x": X[:0]}, ValueError, r"support_x must hold at least one task .* got T = 0, N = 5"),
        (
            {"support_x": X[:, :0]},
            ValueError,
            r"support_x must hold at least .* one sample, got T = 3, N = 0",
        ),
        ({"query_x": X[:, :0]}, ValueError, r"query_x must hold .* M = 0 \(shape \[3, 0, 6\]\)"),
        ({"support_x": None}, TypeError, r"support_x must hold tensors \[T, N, \.\.\.\], got None"),
        ({"query_x": None}, TypeError, r"query_x must hold tensors \[T, M, \.\.\.\], got None; pass"),
        ({"query_x": None, "required": False}, TypeError, r"query_x must hold tensors"),
        ({"support_x": {}}, TypeError, r"support_x must hold at least one tensor, got \{\}"),
        # the task dimension
        (
            {"support_x": X[0, 0]},
            ValueError,
            r"support_x must have shape \[T, N, \.\.\.\], got \[6\]: its task dim",
        ),
        ({"support_y": Y[0]}, ValueError, r"support_y must have .* got \[5\]: .* missing; .* unsqueeze\(0\)"),
        ({"query_y": torch.tensor(1)}, ValueError, r"query_y must have shape \[T, M, \.\.\.\], got \[\]"),
        # kinds
        ({"support_x": X.numpy()}, TypeError, r"support_x must be a tensor, got ndarray; .*torch\.as_tensor"),
        ({"query_x": (X, [np.zeros(3)])}, TypeError, r"query_x\[1\]\[0\] must be a tensor, got ndarray"),
        ({"support_y": "labels"}, TypeError, r"support_y must be a tensor, got str"),
        # device and dtype
        (
            {"query_x": X.to("meta")},
            ValueError,
            r"query_x must be on the module's device, cpu, got meta; .*\.to",
        ),
        (
            {"support_x": X.double()},
            ValueError,
            r"support_x must .* dtype .* float32, got float64; convert .*\.to",
        ),
        (
            {"inner_loss": F.mse_loss, "support_y": torch.zeros(T, N, 2).double()},
            ValueError,
            r"support_y must have the dtype of the module's parameters, float32, got float64; convert",
        ),
        ({"module": nn.Linear(6, C).bfloat16()}, ValueError, r"support_x .* bfloat16, got float32"),
        # labels
        (
            {"support_y": torch.zeros(T, N)},
            ValueError,
            r"support_y: labels must be int64, .* float32 .*\.long\(\)",
        ),
        ({"query_y": torch.zeros(T, M).int()}, ValueError, r"query_y: labels must be int64, .* got int32"),
        ({"query_y": torch.ones(T, M).bool()}, ValueError, r"query_y: labels must be int64, .* got bool"),
        (
            {"support_y": None},
            TypeError,
            r"support_y must be one tensor, as inner_loss is cross_entropy, got None",
        ),
        (
            {"outer_loss": F.mse_loss, "query_y": None},
            TypeError,
            r"query_y .* outer_loss is mse_loss, got None",
        ),
        (
            {"inner_loss": functools.partial(F.cross_entropy, label_smoothing=0.1), "support_y": (Y, Y)},
            TypeError,
            r"support_y must be one tensor, as inner_loss is cross_entropy, got tuple",
        ),
        # slices
        (
            {"size": N + 1},
            ValueError,
            r"inner_batch_size must be at most .* support samples, 5, got 6; lower it",
        ),
    ],
)
def test_bad_batches(changes, error, message):
    with pytest.raises(error, match=message):
        check(**changes)


def test_no_grad_lifts_the_check_of_gradients_and_autocast_none():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="support_x must have the dtype"):
        check(support_x=X.bfloat16())
    with torch.no_grad():
        check(support_x=X.clone().requires_grad_())


def test_a_dtype_of_any_trainable_parameter_is_legal():
    mixed = nn.ModuleList([nn.Linear(6, 2).double(), nn.Linear(2, C)])
    check(module=mixed)
    with pytest.raises(ValueError, match="float32 or float64, got float16"):
        check(module=mixed, support_x=X.half())


def test_query_of_learners():
    module = nn.Linear(6, C)
    check_query(X, tasks=T, module=module)
    check_query({"a": X, "b": Y}, tasks=T, module=module)
    with pytest.raises(ValueError, match=r"query_x must hold the 4 tasks that .* adapted to, got 3 \(shape"):
        check_query(X, tasks=4, module=module)
    with pytest.raises(ValueError, match=r"query_x\['b'\] must hold as many samples as query_x\['a'\], 5, got 2"):
        check_query({"a": X, "b": Y[:, :2]}, tasks=T, module=module, bn_statistics="support")
    check_query({"a": X, "b": Y[:, :2], "c": torch.zeros(T)}, tasks=T, module=module)
    with pytest.raises(ValueError, match=r"query_x must have shape \[T, M, \.\.\.\], got \[6\]"):
        check_query(X[0, 0], tasks=T, module=module)
    with pytest.raises(TypeError, match=r"query_x must hold tensors \[T, M, \.\.\.\], got None"):
        check_query(None, tasks=T, module=module)


def test_labels_out_of_range():
    labels = torch.tensor([[0, 3, -100], [1, 2, 0]])
    check_labels("support_y", labels, 4)
    check_labels("support_y", torch.full((2, 3), -100), 4)
    check_labels("support_y", torch.tensor([[7, 1]]), 2, ignore_index=7)
    with pytest.raises(ValueError, match=r"support_y: labels must lie in \[0, 3\), as .* 3 logits, got .* 0 to 3; num"):
        check_labels("support_y", labels, 3)
    with pytest.raises(ValueError, match=r"query_y: labels must lie in \[0, 4\), .* got values from -1 to 1"):
        check_labels("query_y", torch.tensor([[1, -1]]), 4)
    with pytest.raises(ValueError, match=r"query_y: labels must lie in \[0, 4\)"):
        check_labels("query_y", Y + 4, C)
    with pytest.raises(ValueError, match=r"got values from -100 to 3"):
        check_labels("query_y", labels, 4, ignore_index=-1)


def test_labels_on_another_device_are_checked_there():
    check_labels("support_y", torch.zeros(T, N, dtype=torch.int64, device="meta"), 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_legal_labels_pass_on_a_gpu_without_waiting():
    labels = torch.tensor([[0, 3, -100], [1, 2, 0]], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        check_labels("support_y", labels, 4)
        finite = finite_tasks(labels, labels / 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert finite.tolist() == [True, True]


def test_class_targets_against_logits():
    check_class_targets("support_y", Y, (T, N, C))
    check_class_targets("support_y", torch.rand(T, N, C), (T, N, C))
    check_class_targets("support_y", torch.zeros(T, N, 8).long(), (T, N, C, 8))
    with pytest.raises(ValueError, match=r"support_y: labels must be int64, got float32 .* logits' shape \[3, 5, 4\]"):
        check_class_targets("support_y", torch.rand(T, N, C + 1), (T, N, C))
    with pytest.raises(
        ValueError, match=r"query_y: labels must have shape \[3, 5\] .* got \[3, 5, 1\]; .* not one-hot"
    ):
        check_class_targets("query_y", Y.unsqueeze(2), (T, N, C))


def test_a_loss_must_be_one_scalar_a_task():
    check_per_task_loss("inner_loss", torch.zeros(()))
    check_per_task_loss("inner_loss", torch.zeros(T), T)
    with pytest.raises(TypeError, match="outer_loss must return a scalar tensor for each task, got float"):
        check_per_task_loss("outer_loss", 1.0)
    with pytest.raises(ValueError, match=r"inner_loss must return a scalar .* shape \[5\]; reduce .*\.mean\(\)"):
        check_per_task_loss("inner_loss", torch.zeros(N))
    with pytest.raises(ValueError, match=r"inner_loss must .* shape \[3, 1\] for 3 tasks"):
        check_per_task_loss("inner_loss", torch.zeros(T, 1), T)
    with pytest.raises(ValueError, match=r"inner_loss must return a floating-point scalar for each task, got int64"):
        check_per_task_loss("inner_loss", torch.tensor(3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_finite_tasks(bad, dtype):
    x = torch.randn(5, 3, 2, dtype=dtype)
    x[0] = torch.finfo(dtype).max  # finite, though its sum is not
    x[1] = 0.0
    y, losses = torch.zeros(5, 4, dtype=dtype), torch.zeros(5, dtype=dtype)
    assert finite_tasks(x, {"a": (y, None)}, losses, Y[:1].expand(5, N)).all()
    x[2, 1, 1], y[3, 0], losses[4] = bad, bad, bad
    assert finite_tasks(x).tolist() == [True, True, False, True, True]
    assert finite_tasks(x, {"a": (y, None)}, losses).tolist() == [True, True, False, False, False]
    assert finite_tasks(torch.ones(5, 2, dtype=torch.int64)).tolist() == [True] * 5
    assert not finite_tasks(x.requires_grad_()).requires_grad


def test_finite_tasks_survives_the_compiler():
    x = torch.ones(4, 3, 2)
    x[1, 0, 1], x[2, 2, 0] = torch.nan, torch.inf
    assert torch.compile(finite_tasks, fullgraph=True)(x).tolist() == [True, False, False, True]


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.InstanceNorm1d(3, track_running_stats=True)])
def test_running_statistics_warn_once_for_each_module(layer):
    model = nn.Sequential(nn.Identity(), layer).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_running_statistics(model)  # eval mode reads them: nothing to say
        warn_running_statistics(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
    with pytest.warns(UserWarning, match=rf"{type(layer).__name__} '1' tracks .* never writes them; .*=False"):
        warn_running_statistics(model.train())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_running_statistics(model)
    with pytest.warns(UserWarning, match="tracks running statistics") as caught:
        warn_running_statistics(nn.Sequential(layer))
    assert caught[0].filename == __file__


@pytest.mark.usefixtures("poison")
def test_poison_fills_fresh_memory():
    assert torch.empty(3).isnan().all()
    assert torch.empty_like(torch.zeros(2)).isnan().all()
    assert torch.zeros(2).new_empty(4).isnan().all()
    assert torch.empty(3, dtype=torch.int64).shape == (3,)
