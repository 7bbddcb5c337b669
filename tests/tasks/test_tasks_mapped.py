"""Episodes of images that stay in their file, and transforms of the user's."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from image_files import numbered

from fastmeta.tasks import ClassEpisodes, ClassTable, as_images

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = {"ways": 3, "shots": 1, "queries": 2}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def both(tmp_path):
    """The same images in memory and in a file."""
    np.save(tmp_path / "x.npy", numbered(60, size=6).pixels.permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "x-labels.npy", np.arange(60) // 10)
    mapped = as_images(tmp_path / "x.npy")
    assert mapped.mapped
    return ClassTable.of_labels(mapped.pixels.clone(), mapped.labels), mapped.table()


@pytest.mark.parametrize("options", [{}, {"augment": 1.0, "augment_classes": 1.0}])
def test_mapped_images_make_the_same_episodes(both, options):
    """Whatever was read ahead: as many tasks, others, and a generator that was set back."""
    memory, file = (ClassEpisodes(table, **COUNTS, **options) for table in both)
    draws = generator(), generator()
    for tasks in (4, 4, 2, 4, 4):
        expected, found = memory.sample(tasks, draws[0]), file.sample(tasks, draws[1])
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert torch.equal(draws[0].get_state(), draws[1].get_state())
    first = file.sample(4, generator())
    assert all(torch.equal(a, b) for a, b in zip(first, file.sample(4, generator()), strict=True))
    copy = pickle.loads(pickle.dumps(file))
    assert torch.equal(copy.sample(4, generator()).query_x, first.query_x)


def test_the_next_images_are_read_ahead(both, monkeypatch):
    family = ClassEpisodes(both[1], **COUNTS)
    draw = generator()
    family.sample(4, draw)
    monkeypatch.setattr(family._ahead, "_draw", None)  # what is read already needs no draw
    with pytest.raises(TypeError):
        family.sample(4, draw)  # the one after the next does
    assert family._ahead._next is None


def test_large_classes_draw_without_repetition(monkeypatch):
    monkeypatch.setattr("fastmeta.tasks.class_episodes._MANY", 10)
    images = numbered(90, size=4)
    table = ClassTable.of_labels(images.pixels, torch.arange(90) % 3)
    family = ClassEpisodes(table, **COUNTS)
    assert family._large
    episodes = family.sample(500, generator())
    x = torch.cat([episodes.support_x, episodes.query_x], 1)[..., 0, 0, 0]
    rows = (x * 255).round().long() - 1
    of_class = rows.view(500, 3, 3)  # shot by shot
    assert torch.equal(of_class % 3, (of_class % 3)[:, :1].expand(-1, 3, -1)), "samples of a column are of one class"
    assert of_class.sort(1).values.diff(dim=1).min() > 0, "no image twice"
    counts = torch.bincount(rows.flatten(), minlength=90)
    assert counts.min() > 20, "all images are drawn (50 times each on average)"
    assert counts.max() < 90


def test_a_transform_of_a_batch(both):
    def double(x):
        assert x.shape == (4 * 9, 1, 6, 6)
        return torch.cat([x, 2 * x - 1], 1)[..., :5]

    plain, made = (ClassEpisodes(both[0], **COUNTS, transform=t).sample(4, generator()) for t in (None, double))
    assert made.support_x.shape == (4, 3, 2, 6, 5)
    assert torch.equal(made.query_x[:, :, :1], plain.query_x[..., :5])
    assert torch.equal(made.query_x[:, :, 1:], 2 * plain.query_x[..., :5] - 1)


@pytest.mark.parametrize(
    "transform, got",
    [
        (lambda x: x[0], r"torch\.float32 \[1, 6, 6\]"),
        (lambda x: x[:3], r"torch\.float32 \[3, 1, 6, 6\]"),
        (lambda x: x.byte(), r"torch\.uint8 \[36, 1, 6, 6\]"),
        (lambda x: None, "NoneType"),
    ],
)
def test_a_transform_that_gives_no_batch(both, transform, got):
    family = ClassEpisodes(both[0], **COUNTS, transform=transform)
    message = rf"transform must give a floating-point batch \[36, channels, H, W\].*got {got}"
    with pytest.raises(ValueError, match=message):
        family.sample(4, generator())


def test_ten_times_the_memory_limit_trains(tmp_path):
    """320 MiB of images under a limit of 32 MiB above what the program takes before it opens them.

    Mapped pages are the kernel's to take back; what a process allocates (RLIMIT_DATA) is what has the limit.
    """
    script = f"""
        import resource, numpy as np, torch
        from pathlib import Path
        import fastmeta
        from fastmeta.tasks import ClassEpisodes, as_images
        from fastmeta.models import build_model

        torch.set_num_threads(1)
        model = build_model("conv4", shape=(3, 84, 84), ways=2, channels=2)
        maml = fastmeta.MAML(model, inner_optimizer=fastmeta.SGD(lr=0.1), inner_loss=torch.nn.functional.cross_entropy)
        warm = torch.rand(1, 2, 3, 84, 84), torch.arange(2)[None], torch.rand(1, 2, 3, 84, 84), torch.arange(2)[None]
        maml(*warm).loss.backward()
        count = 320 * 2**20 // (3 * 84 * 84)
        path = Path({str(tmp_path)!r}) / "x.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 3, 84, 84))  # a sparse file
        np.save(path.with_name("x-labels.npy"), np.arange(count) % 50)

        used = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmData")) * 1024
        limit = used + 32 * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        images = as_images(path)
        images.fingerprint()
        family = ClassEpisodes(images.table(), ways=2, shots=1, queries=1)
        draw = torch.Generator().manual_seed(0)
        for _ in range(3):
            out = maml(*family.sample(1, draw))
            out.loss.backward()
        print("trained", bool(out.loss.isfinite()))
        try:
            images.pixels.clone()
        except RuntimeError:
            print("and the limit holds")
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == ["trained True", "and the limit holds"], run.stderr
