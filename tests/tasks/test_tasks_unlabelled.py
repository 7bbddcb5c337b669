"""Tasks from images without labels: UMTRA, CACTUs, self-supervised pretexts."""

from __future__ import annotations

import sys

import pytest
import torch
from image_files import coordinates, numbered, numbers

from fastmeta.tasks import PRETEXTS, UMTRA, CACTUs, Images, SelfSupervised, partition
from fastmeta.tasks.augment import views
from fastmeta.tasks.base import distinct_rows
from fastmeta.tasks.pretexts import NEIGHBOURS, patch_layout

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# UMTRA.


def test_a_query_comes_from_its_class_s_image():
    family = UMTRA(numbered(60), ways=5, queries=3)
    support_x, support_y, query_x, query_y = family.sample(200, generator())
    assert support_x.shape == (200, 5, 1, 28, 28)
    assert query_x.shape == (200, 15, 1, 28, 28)
    assert torch.equal(support_y, torch.arange(5).expand(200, 5))
    source = numbers(support_x)
    assert torch.equal(numbers(query_x), source.gather(1, query_y))
    assert all(len(row.unique()) == 5 for row in source), "images of a task differ"
    assert torch.equal(support_x, ((source + 1) / 255).view(200, 5, 1, 1, 1).expand_as(support_x)), "support as it is"
    assert source.unique().numel() == 60, "every image occurs"


def test_augmented_copies_differ():
    pixels = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8)
    x, _, query, _ = UMTRA(Images(pixels, None), ways=3, queries=2).sample(4, generator())
    copies = query.view(4, 2, 3, 3, 16, 16)
    assert (copies[:, 0] - copies[:, 1]).abs().mean((2, 3, 4)).min() > 0.02
    assert (copies - x[:, None]).abs().mean((3, 4, 5)).min() > 0.02
    assert query.min() >= 0
    assert query.max() <= 1


def test_umtra_reads_no_labels_and_repeats():
    images = numbered(30, labels=True)
    family = UMTRA(images, ways=4)
    blind = UMTRA(Images(images.pixels, images.labels.flip(0)), ways=4)
    first, same, other = (f.sample(6, generator(s)) for f, s in ((family, 1), (blind, 1), (family, 2)))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first.query_x, other.query_x)


def test_too_few_images_for_the_ways():
    with pytest.raises(ValueError, match="5 ways need at least 5 images, got 4"):
        UMTRA(numbered(4), ways=5)
    UMTRA(numbered(5), ways=5).sample(3, generator())


@pytest.mark.parametrize("options", [{"ways": 1}, {"queries": 0}, {"augment": 0.0}, {"augment": 5.0}])
def test_bad_umtra(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))} must "):
        UMTRA(numbered(9), **{"ways": 3} | options)


@pytest.mark.parametrize("count, wanted", [(5, 5), (7, 4), (30, 3), (1000, 5)])
def test_distinct_rows_are_uniform(count, wanted):
    rows = distinct_rows(count, 4000, wanted, generator())
    assert all(len(set(row)) == wanted for row in rows.tolist())
    counts = torch.bincount(rows.flatten(), minlength=count).double()
    expected = 4000 * wanted / count
    assert ((counts - expected).abs() < 5 * expected**0.5 + 1).all()


# Views.


def test_views_of_strength_zero_are_the_images():
    for channels in (1, 3):
        x = torch.rand(2, 3, channels, 9, 9)
        torch.testing.assert_close(views(x, strength=0.0, generator=generator()), x, atol=1e-5, rtol=0)


def test_photographs_are_mirrored_half_of_the_time():
    x = torch.zeros(2000, 3, 8, 8)
    x[..., :4] = 0.5
    y = views(x, strength=1e-6, generator=generator())
    left = y[:, 0, 4, 0] > 0.25
    assert torch.equal(left, y[:, 0, 4, -1] < 0.25)
    assert abs(left.double().mean() - 0.5) < 0.05


# CACTUs.


def blobs() -> tuple[Images, torch.Tensor]:
    """Four kinds of images, ten of each, in random order, and an embedding that tells the kinds apart."""
    kind = torch.arange(4).repeat(10)[torch.randperm(40, generator=generator())]
    embedding = torch.nn.functional.one_hot(kind, 4) + 0.01 * torch.randn(40, 4, generator=generator(1))
    images = numbered(40)
    return Images(images.pixels, kind), embedding


def test_clusters_are_classes():
    images, embedding = blobs()
    partitions = partition(embedding, clusters=4, partitions=3)
    assert partitions.shape == (3, 40)
    family = CACTUs(images, partitions, ways=3, shots=2, queries=3)
    episodes = family.sample(50, generator())
    source = numbers(torch.cat([episodes.support_x, episodes.query_x], 1))
    labels = torch.cat([episodes.support_y, episodes.query_y], 1)
    pure = 0
    for row, of_row in zip(source, labels, strict=True):
        assert len(row.unique()) == len(row), "no image twice in a task"
        for label in range(3):
            members = row[of_row == label]
            assert any((p[members] == p[members[0]]).all() for p in partitions), "a class is one cluster"
        pure += all(len(images.labels[row[of_row == label]].unique()) == 1 for label in range(3))
    assert pure >= 40, "clusters are mostly the kinds that the embedding shows"


def test_a_task_mixes_no_partitions():
    """Two partitions that cut the images differently: by thirds, and by turns."""
    partitions = torch.stack([torch.arange(30) // 10, torch.arange(30) % 3])
    family = CACTUs(numbered(30), partitions, ways=3, shots=2, queries=2)
    episodes = family.sample(100, generator())
    source = numbers(episodes.support_x)
    matched = torch.stack([partitions[p][source] for p in range(2)])  # [2, tasks, N]
    whole = [
        all(len(matched[p, t][episodes.support_y[t] == label].unique()) == 1 for label in range(3))
        for t in range(100)
        for p in range(2)
    ]
    assert sum(whole) >= 100, "each task is explained by one of the two"


def test_clusters_do_not_leak_labels():
    images, embedding = blobs()
    partitions = partition(embedding, clusters=4, partitions=2)
    relabelled = Images(images.pixels, images.labels.flip(0))
    families = [CACTUs(i, partitions, ways=2, shots=1, queries=1) for i in (images, relabelled, images.unlabelled())]
    drawn = [family.sample(5, generator()) for family in families]
    for other in drawn[1:]:
        assert all(torch.equal(a, b) for a, b in zip(drawn[0], other, strict=True))


def test_partitions_repeat_and_differ():
    _, embedding = blobs()
    embedding = embedding + torch.randn(40, 4, generator=generator(3))
    first, again, other = (partition(embedding, clusters=6, partitions=4, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_small_clusters_are_left_out():
    clusters = torch.tensor([0] * 9 + [1] * 9 + [2] * 2)[None]
    family = CACTUs(numbered(20), clusters, ways=2, shots=1, queries=2)
    assert family.classes == 2
    with pytest.raises(ValueError, match=r"3 ways need 3 clusters of at least 1 \+ 2 images.*partition 0 has 2 of 3"):
        CACTUs(numbered(20), clusters, ways=3, shots=1, queries=2)


def test_bad_partitions():
    with pytest.raises(ValueError, match=r"partitions must be \[partitions, 20\].*got \[2, 19\]"):
        CACTUs(numbered(20), torch.zeros(2, 19, dtype=torch.int64), ways=2, shots=1, queries=1)
    with pytest.raises(ValueError, match="9 clusters need at least as many images, got 5"):
        partition(torch.rand(5, 3), clusters=9)
    with pytest.raises(ValueError, match="embedding must be a finite matrix"):
        partition(torch.full((5, 3), torch.nan), clusters=2)


def test_clustering_needs_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(RuntimeError, match=r'clustering needs scikit-learn: pip install "fastmeta\[train\]"'):
        partition(torch.rand(5, 3), clusters=2)


# Pretexts.


def unshuffled(name: str, images: Images, **options) -> SelfSupervised:
    return SelfSupervised(images, (name,), ways=PRETEXTS[name].classes, shots=1, queries=1, shuffle=False, **options)


def test_rotations():
    images = coordinates(20)
    x, y, _, _ = unshuffled("rotation", images).sample(3, generator())
    for image, label in zip(x.flatten(0, 1), y.flatten(), strict=True):
        number = int((image[2, 0, 0] * 255).round()) // 4
        assert torch.equal(image, torch.rot90(images.pixels[number] / 255, int(label), (1, 2)))


@pytest.mark.parametrize("size", [14, 28, 32, 45])
def test_patches_do_not_overlap_and_fit(size):
    patch, step, slack = patch_layout(size)
    assert patch >= 3
    assert step > patch, "there is a gap"
    assert slack >= 1, "the grid moves"
    assert 2 * step + patch + slack == size


def test_patch_labels_match_positions():
    """Where a patch comes from is read off its colours: the mean row and column."""
    x, y, _, _ = unshuffled("patches", coordinates(40, size=32)).sample(20, generator())
    assert x.shape == (20, 8, 3, 32, 32)
    assert (x[:, :, :, :8] == 0).all(), "blank above"
    assert (x[:, :, :, -8:] == 0).all(), "blank below"
    patch, step, slack = patch_layout(32)
    both = x[:, :, :2, 8:24].flatten(0, 1) * 255 / 4  # [B, (row, column), 16, 32]
    centres = torch.stack([both[..., :16].mean((2, 3)), both[..., 16:].mean((2, 3))])
    moved = (centres[1] - centres[0]) / step
    expected = torch.tensor(NEIGHBOURS)[y.flatten()] - 1
    torch.testing.assert_close(moved, expected.float(), atol=0.02, rtol=0)
    assert moved.abs().amax(1).min() > 0.9, "the patches are a step apart, which is more than a patch"
    corner = centres[0] - step - (patch - 1) / 2
    assert corner.min() > -0.1
    assert corner.max() < slack + 0.1
    assert corner.std(0).min() > 0.5, "the grid is not always in the same place"


def test_tiles_and_colours_are_permutations():
    images = Images(torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8), None)
    for name in ("tiles", "colours"):
        x = unshuffled(name, images).sample(1, generator()).support_x
        assert len({tuple(one.flatten().tolist()) for one in x[0]}) == x.shape[1]
        for image in x[0]:
            same = [torch.equal(image.flatten().sort()[0], (p / 255).flatten().sort()[0]) for p in images.pixels]
            assert sum(same) == 1, f"{name} keeps the pixels"


def test_zooms_grow():
    images = coordinates(20)
    x, y, _, _ = unshuffled("zoom", images).sample(30, generator())
    spread = (x[:, :, 0].amax((2, 3)) - x[:, :, 0].amin((2, 3))).mean(0)
    assert y[0].tolist() == [0, 1, 2, 3]
    assert (spread.diff() < -0.05).all()


def test_tasks_number_transformations_anew():
    """Among rotations alone: which turn has label 0 changes from task to task, and within a task it does not."""
    images = coordinates(20)
    episodes = SelfSupervised(images, ways=4, shots=2, queries=2).sample(60, generator())
    x = torch.cat([episodes.support_x, episodes.query_x], 1)
    labels = torch.cat([episodes.support_y, episodes.query_y], 1)
    red = x[:, :, 0]  # grows downwards in the image as it was
    turn = (red[..., -1, 0] - red[..., 0, 0]).sign() + 3 * (red[..., 0, -1] - red[..., 0, 0]).sign()
    orders = set()
    for of_task, label in zip(turn, labels, strict=True):
        kinds = [of_task[label == i].unique() for i in range(4)]
        assert all(len(kind) == 1 for kind in kinds)
        orders.add(tuple(int(kind) for kind in kinds))
    assert len(orders) > 12


def test_no_image_twice_in_a_task():
    x, _, query, _ = SelfSupervised(coordinates(30), ways=4, shots=3, queries=3).sample(20, generator())
    number = (torch.cat([x, query], 1)[:, :, 2, 0, 0] * 255).round()
    assert all(len(row.unique()) == 24 for row in number)


def test_mixed_pretexts_repeat_and_read_no_labels():
    images = Images(torch.randint(0, 256, (50, 3, 16, 16), dtype=torch.uint8), torch.arange(50))
    families = [
        SelfSupervised(i, tuple(PRETEXTS), augment=1.0, shots=1, queries=1) for i in (images, images.unlabelled())
    ]
    first, same = (family.sample(9, generator()) for family in families)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first.support_x, families[0].sample(9, generator(1)).support_x)


@pytest.mark.parametrize(
    "name, images, options, message",
    [
        ("patches", numbered(40, size=13), {}, "at least 14 × 14 pixels, got 13 × 13: smaller ones have no room"),
        ("colours", numbered(40), {}, "pretext colours needs colour images, got 1 channel"),
        ("rotation", numbered(40), {"ways": 5}, "pretext rotation has 4 classes, got 5 ways"),
        ("shape", numbered(40), {}, "pretext must be one of rotation, patches, tiles, colours, zoom, got 'shape'"),
        ("rotation", numbered(7), {}, "8 ways need at least 8 images, got 7"),
        ("rotation", numbered(40), {"shots": 0}, "shots must be an integer of at least 1, got 0"),
    ],
)
def test_bad_pretexts(name, images, options, message):
    with pytest.raises(ValueError, match=message):
        SelfSupervised(images, (name,), **{"ways": 4, "shots": 1, "queries": 1} | options)
