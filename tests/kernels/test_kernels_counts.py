"""Every element of what kernels give is written once, and nothing else is touched: counted in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from meta_steps import classification, mlp
from torch import nn

import fastmeta
from fastmeta.models import build_model

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1")

STEPS = 3
OPTIMIZERS = {
    "sgd": fastmeta.SGD(lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": fastmeta.Adam(lr=0.01),
}


def counted(monkeypatch, optimizer, *, by_layer):
    """The counts of one meta-step, and the launches' names; parameters of sizes that leave padding behind each."""
    from fastmeta.kernels.counts import counting

    from fastmeta.engine.backends import triton as triton_backend
    from fastmeta.engine.batch import TaskBatch

    if by_layer:
        monkeypatch.setattr(triton_backend, "fits_loop", lambda *_: False)
    learner = fastmeta.MAML(
        mlp(3, 67, 5).float(), inner_loss=F.cross_entropy, inner_optimizer=OPTIMIZERS[optimizer], inner_steps=STEPS,
        backend="triton", memory="recompute",
    )  # fmt: skip
    batch = TaskBatch(*classification(3, tasks=2, support=9, query=70, classes=5, dtype=torch.float32))
    session = learner.session(batch, steps=STEPS)
    with counting(watch=True) as counts:
        result = session.meta_step(keep=True)
    return counts, result


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("by_layer", [False, True])
def test_every_result_is_written_once(monkeypatch, optimizer, by_layer):
    counts, (loss, gradient, tasks, _) = counted(monkeypatch, optimizer, by_layer=by_layer)
    results = {"loss": loss, "gradient": gradient.start, "losses": tasks.losses, "outputs": tasks.outputs[0],
               "finite": tasks.finite.view(torch.uint8)}  # fmt: skip
    for name, tensor in results.items():
        (written,) = counts.times_written(tensor.contiguous()).values()
        assert (written == 1).all(), name
    for phi in counts.trajectory:
        total = sum(counts.times_written(phi).values())
        assert (total == 1).all(), "φ_1 … φ_K, once each"
    assert sum(phi.shape[0] for phi in counts.trajectory) == 2 * STEPS
    # the query gradient, and then once for every step of the adjoint
    total = sum(counts.times_written(tasks.cotangents.start).values())
    assert (total == STEPS + 1).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_two_programs_of_a_layer_write_to_one_place(monkeypatch, optimizer):
    counts, _ = counted(monkeypatch, optimizer, by_layer=True)
    tensors = [memory.tensor for memory in counts._memory.values()]
    seen = set()
    for tensor in tensors:
        whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        for launch, written in counts.times_written(whole).items():
            seen.add(launch.split(" ", 1)[1])
            assert written.max() == 1, launch
    assert {name.split()[0] for name in seen} == {name.split()[0] for name in counts.launches}


def conv_net(blocks):
    """Blocks with biases, of sizes that leave padding behind each parameter."""
    layers = []
    for block in range(blocks):
        layers += [nn.Conv2d(5 if block else 1, 5, 3, padding=1), nn.BatchNorm2d(5, track_running_stats=False),
                   nn.ReLU(), nn.MaxPool2d(2)]  # fmt: skip
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * (7 // 2**blocks) ** 2, 3))


def test_no_two_programs_of_a_convolution_write_to_one_place(monkeypatch):
    """Tiles are small, so that there are several of everything."""
    from fastmeta.kernels import tiles
    from fastmeta.kernels.counts import counting

    from fastmeta.engine.backends import triton as triton_backend
    from fastmeta.engine.batch import TaskBatch

    monkeypatch.setattr(tiles, "PIXEL_VALUES", 512)
    monkeypatch.setattr(triton_backend.TritonBackend, "_outside", lambda _, rows: rows)  # λ itself, in no new order
    learner = fastmeta.MAML(
        conv_net(2), inner_loss=F.cross_entropy, inner_optimizer=OPTIMIZERS["sgd"], inner_steps=1, backend="triton"
    )
    batch = TaskBatch(*classification(1, 7, 7, tasks=2, support=2, query=1, classes=3, dtype=torch.float32))
    session = learner.session(batch, steps=1)
    with counting(watch=True) as counts:
        tasks = session.meta_step(keep=True).tasks
    assert counts.written_twice() == set()
    for phi in counts.trajectory:
        assert (sum(counts.times_written(phi).values()) == 1).all(), "φ_1, padding and all"
    assert (sum(counts.times_written(tasks.cotangents.start).values()) == 2).all(), (
        "the query gradient, and the adjoint"
    )


def test_launches_of_conv4(monkeypatch):
    """K = 5 and four blocks, in numbers that do not depend on the tasks or their samples; nothing runs."""
    from fastmeta.kernels import launch

    from fastmeta.engine.batch import TaskBatch

    learner = fastmeta.MAML(
        build_model("conv4-pooled", ways=3, channels=4), inner_loss=F.cross_entropy,
        inner_optimizer=fastmeta.SGD(lr=0.1), inner_steps=5, backend="triton",
    )  # fmt: skip
    batch = TaskBatch(*classification(1, 28, 28, tasks=2, support=3, query=2, classes=3, dtype=torch.float32))
    session = learner.session(batch, steps=5)
    launches = []
    monkeypatch.setattr(launch, "run", lambda kernel, *_: launches.append(kernel.__name__))
    session.meta_step(keep=True)
    assert len(launches) == 184


def test_an_access_outside_of_the_tensors_is_an_error():
    import triton.language as tl
    from fastmeta.kernels.counts import counting
    from fastmeta.kernels.launch import launch

    @triton.jit
    def beyond_kernel(p_x, N: tl.constexpr):
        tl.store(p_x + tl.arange(0, N), 0.0)

    with counting() as counts:
        launch(beyond_kernel, (1,), torch.empty(8), N=8)
    assert (counts.stored, counts.distinct()) == (32, 32)
    with counting(), pytest.raises(Exception, match="beyond_kernel reaches outside of its tensors"):
        launch(beyond_kernel, (1,), torch.empty(4), N=8)


def small_kernels():
    import triton.language as tl

    @triton.jit
    def twice_kernel(p_x, p_y, N: tl.constexpr):
        """Every program reads all of x, twice, and adds it to one row of y, in place."""
        offsets = tl.arange(0, N)
        row = tl.program_id(0) * N
        y = tl.load(p_y + row + offsets) + tl.load(p_x + offsets) + tl.load(p_x + offsets)
        tl.store(p_y + row + offsets, y)

    @triton.jit
    def ticket_kernel(p_counter, p_y):
        """Programs draw numbers from one counter, and each writes where its number says."""
        number = tl.atomic_add(p_counter, 1)
        tl.store(p_y + number, 1.0)

    @triton.jit
    def product_kernel(p_x, N: tl.constexpr):
        at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
        x = tl.load(p_x + at)
        tl.store(p_x + at, tl.dot(x, tl.dot(x, x)))

    return twice_kernel, ticket_kernel, product_kernel


def test_a_byte_moves_once_a_launch_and_direction():
    from fastmeta.kernels.counts import counting
    from fastmeta.kernels.launch import launch

    twice, _, _ = small_kernels()
    x, y = torch.randn(16), torch.zeros(4, 16)
    with counting() as counts:
        for _ in range(3):
            launch(twice, (4,), x, y, N=16)
    x_bytes, y_bytes = 16 * 4, 4 * 16 * 4
    assert counts.loaded == 3 * (4 * 2 * x_bytes + y_bytes)
    assert counts.stored == 3 * y_bytes
    assert [record.bytes() for record in counts.records] == 3 * [x_bytes + 2 * y_bytes]
    assert counts.records[1].bytes(x.data_ptr().__eq__) == x_bytes
    assert counts.moved() == 3 * (x_bytes + 2 * y_bytes)
    assert counts.distinct() == x_bytes + y_bytes


def test_an_atomic_moves_both_ways_and_is_not_a_second_write():
    from fastmeta.kernels.counts import counting
    from fastmeta.kernels.launch import launch

    _, ticket, _ = small_kernels()
    counter, y = torch.zeros(1, dtype=torch.int32), torch.zeros(5)
    with counting(watch=True) as counts:
        launch(ticket, (5,), counter, y)
    assert counter.item() == 5
    assert y.tolist() == [1.0] * 5
    assert counts.written_twice() == set()
    assert (counts.loaded, counts.stored) == (5 * 4, 5 * 4 + 5 * 4)
    assert counts.moved() == (4 + 4) + 5 * 4


def test_products_are_counted_with_what_fills_their_blocks():
    from fastmeta.kernels.counts import counting
    from fastmeta.kernels.launch import launch

    _, _, product = small_kernels()
    with counting() as counts:
        launch(product, (3,), torch.zeros(16, 16), N=16)
    assert counts.records[0].flop == 3 * 2 * (2 * 16**3)


def test_a_list_of_launches_runs_none_of_them():
    from fastmeta.kernels.counts import listing
    from fastmeta.kernels.launch import launch

    twice, _, _ = small_kernels()
    x, y = torch.ones(16), torch.zeros(4, 16)
    with listing() as counts:
        launch(twice, (4,), x, y, label="on four rows", N=16)
    assert (y == 0).all()
    assert counts.launches == ["twice_kernel on four rows"]
    assert counts.records[0].arguments == [(x.data_ptr(), 64), (y.data_ptr(), 256)]
