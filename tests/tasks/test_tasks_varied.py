"""Tasks of different ways and shots: what may be in them, and that padding changes no number."""

from __future__ import annotations

import copy

import pytest
import torch
from plain_loop import plain_loop
from torch import nn
from torch.nn import functional as F

import fastmeta
from fastmeta.models import PaddedConv4, conv4
from fastmeta.tasks import ClassTable, Episodes, VariedEpisodes
from fastmeta.train.scores.evaluate import evaluate

IMAGES = torch.tensor([9, 12, 8, 9, 15, 9, 10, 9])
"""Of each class."""


def numbered(side: int = 4) -> ClassTable:
    """Images whose first pixel is the class and whose second is the image's number + 1; the others are random."""
    labels = torch.arange(len(IMAGES)).repeat_interleave(IMAGES)
    images = torch.randint(256, (len(labels), 1, side, side), dtype=torch.uint8, generator=generator())
    images[:, 0, 0, 0] = labels.to(torch.uint8)
    images[:, 0, 0, 1] = torch.cat([torch.arange(1, count + 1) for count in IMAGES.tolist()]).to(torch.uint8)
    return ClassTable.of_labels(images, labels)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def varied(**changes) -> VariedEpisodes:
    options = {"ways": (2, 6), "shots": (1, 5), "queries": 3, **changes}
    return VariedEpisodes(options.pop("table", None) or numbered(), **options)


@pytest.mark.parametrize("imbalance", [1.0, 2.0])
def test_what_tasks_hold(imbalance):
    family = varied(imbalance=imbalance)
    seen_ways, seen_shots, uneven = set[int](), set[int](), 0
    for seed in range(30):
        support_x, support_y, query_x, query_y = family.sample(8, generator(seed))
        assert (support_y.shape[1], query_y.shape[1]) in family.sizes
        for task in range(8):
            own = support_y[task] >= 0, query_y[task] >= 0
            for real, x in zip(own, (support_x, query_x), strict=True):
                assert not (~real).any() or int((~real).nonzero()[0]) == int(real.sum()), "padding stands behind"
                assert (x[task, ~real] == -1).all()
                assert ((x[task, real] >= 0) & (x[task, real] <= 1)).all()
            ways = int(query_y[task].max()) + 1
            counts = torch.bincount(support_y[task, own[0]], minlength=ways)
            assert (torch.bincount(query_y[task, own[1]], minlength=ways) == 3).all()
            assert counts.min() >= 1
            seen_ways.add(ways)
            seen_shots.add(int(counts.max()))
            uneven += int(counts.max() > counts.min())
            x = torch.cat([support_x[task, own[0]], query_x[task, own[1]]])[:, 0, 0] * 255
            y = torch.cat([support_y[task, own[0]], query_y[task, own[1]]])
            who, number = x[:, 0].round(), x[:, 1].round()
            assert all(who[y == label].unique().numel() == 1 for label in range(ways)), "a label is one class"
            assert who.unique().numel() == ways, "classes of a task differ"
            assert len({*zip(who.tolist(), number.tolist(), strict=True)}) == len(y), "no image occurs twice"
    assert seen_ways == {2, 3, 4, 5, 6}
    assert seen_shots >= {1, 2, 3, 4, 5}
    assert (uneven > 100) == (imbalance > 1)


def test_shares_are_those_of_meta_dataset():
    family = varied(ways=(8, 8), shots=(4, 4), queries=2, imbalance=2.0)
    counts = torch.stack([
        torch.bincount(y[y >= 0], minlength=8) for y in family.sample(400, generator()).support_y
    ]).double()  # fmt: skip
    assert counts.sum(1).max() <= 32
    # R_c (S − C) + 1, rounded down, of shares between half and twice the usual: at most 2 · 15 / (2 · 15 + 66 / 2)
    assert counts.max() <= int(24 * 30 / (30 + 33)) + 1
    assert counts.std() > 1


def test_a_group_of_few_classes_makes_tasks_of_few_ways():
    table = numbered()
    groups = torch.tensor([[0, 1, 2, -1, -1], [3, 4, 5, 6, 7]])
    family = varied(table=ClassTable(table.images, table.members, groups), ways=(3, 6))
    x, y = family.sample(200, generator())[:2]
    who = torch.where(y >= 0, (x[:, :, 0, 0, 0] * 255).round().long(), -1)
    for row, labels in zip(who, y, strict=True):
        group = {*row[labels >= 0].tolist()}
        assert group <= {0, 1, 2} or group <= {3, 4, 5, 6, 7}
    assert y.max() == 4


def test_a_limit_of_support_images():
    y = varied(shots=(1, 5), support_limit=12).sample(200, generator()).support_y
    assert (y >= 0).sum(1).max() == 12


def test_the_number_of_sizes_is_kept():
    family = varied(sizes=3)
    assert len(family.sizes) == 3
    assert family.sizes[-1] == (30, 18)
    drawn = [family.sample(1, generator(seed)) for seed in range(40)]
    assert {(one.support_y.shape[1], one.query_y.shape[1]) for one in drawn} == {*family.sizes}


def test_episodes_repeat_with_the_generator():
    for one, two in zip(varied().sample(5, generator(3)), varied().sample(5, generator(3)), strict=True):
        assert torch.equal(one, two)


def test_distorted_images_keep_their_padding():
    plain, bent = (varied(**o).sample(4, generator()) for o in ({}, {"augment": 1.0, "augment_classes": 1.0}))
    assert torch.equal(plain.support_y, bent.support_y) or bent.support_y.min() == -100
    padding = bent.support_y < 0
    assert (bent.support_x[padding] == -1).all()
    assert (bent.support_x[~padding] >= 0).all()


def unpadded(episodes: Episodes, task: int) -> Episodes:
    """A task alone."""
    support_x, support_y, query_x, query_y = (part[task : task + 1] for part in episodes)
    s, q = support_y[0] >= 0, query_y[0] >= 0
    return Episodes(support_x[:, s], support_y[:, s], query_x[:, q], query_y[:, q])


def same_as_alone(
    model: nn.Module, parameters: list[nn.Parameter], twin: nn.Module, episodes: Episodes, *, steps: int = 2, **options
) -> None:
    """All tasks at once, padded, give what a plain loop gives over `twin` on each of them, unpadded."""
    learner = fastmeta.MAML(model, inner_optimizer=fastmeta.SGD(lr=0.1), inner_steps=steps, **options)
    out = learner(*episodes)
    out.loss.backward()
    tasks = len(episodes.support_x)
    alone = [plain_loop(twin, F.cross_entropy, unpadded(episodes, t), steps=steps) for t in range(tasks)]
    torch.testing.assert_close(out.task_losses.detach(), torch.cat([one.losses for one in alone]), rtol=1e-9, atol=0)
    expected = [torch.stack(parts).mean(0) for parts in zip(*(one.grads.values() for one in alone), strict=True)]
    whole = max(float(g.abs().max()) for g in expected)
    assert whole > 1e-3
    for p, g in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-8, atol=1e-9 * whole)


def double(episodes: Episodes) -> Episodes:
    support_x, support_y, query_x, query_y = episodes
    return Episodes(support_x.double(), support_y, query_x.double(), query_y)


def padded(side: int = 4, tasks: int = 3) -> Episodes:
    """Tasks of which all but the largest are padded."""
    episodes = varied(table=numbered(side), sizes=2, imbalance=2.0).sample(tasks, generator(5))
    real = (episodes.support_y >= 0).sum(1)
    assert real.unique().numel() == tasks
    assert (episodes.support_y < 0).any()
    assert (episodes.query_y < 0).any()
    return double(episodes)


@pytest.mark.parametrize("options", [{}, {"backend": "reference"}, {"memory": "recompute", "task_chunk": 2}], ids=str)
def test_a_perceptron_sees_no_padding(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 6)).double()
    same_as_alone(model, list(model.parameters()), copy.deepcopy(model), padded(), **options)


def test_padding_stays_out_of_batch_norm():
    torch.manual_seed(0)
    twin = conv4(6, channels=4, shape=(1, 16, 16)).double()
    model = PaddedConv4(6, channels=4, shape=(1, 16, 16)).double()
    for p, q in zip(_in_order(model), twin.parameters(), strict=True):
        p.data.copy_(q.data)
    same_as_alone(model, _in_order(model), twin, padded(16, 2), steps=1)


def _in_order(model: PaddedConv4) -> list[nn.Parameter]:
    """As `conv4` has them."""
    blocks = zip(model.convolutions, model.norms, strict=True)
    return [*(p for pair in blocks for layer in pair for p in layer.parameters()), *model.head.parameters()]


def test_other_learners_of_labels_see_no_padding():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.Tanh()).double()
    episodes = padded()
    for make in (
        lambda: fastmeta.ProtoNet(body, ways=6),
        lambda: fastmeta.R2D2(body, scale=10.0, ways=6),
        lambda: fastmeta.ProtoMAML(body, ways=6, features=9, inner_optimizer=fastmeta.SGD(lr=0.1)),
    ):
        together = make()(*episodes).task_losses
        alone = torch.cat([make()(*unpadded(episodes, t)).task_losses for t in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=0)


def test_scores_count_real_samples_alone():
    family = varied(table=numbered(16), ways=(2, 6))
    torch.manual_seed(0)
    scores = evaluate(fastmeta.MAML(PaddedConv4(6, channels=4, shape=(1, 16, 16))), family, episodes=10, steps=(0, 1))
    assert all(0 <= scores[k].mean <= 1 for k in (0, 1))
    assert scores[0].diverged == 0


def test_networks_that_mix_samples_are_refused():
    family = varied(table=numbered(16))
    family.check(PaddedConv4(6, channels=4, shape=(1, 16, 16)))
    family.check(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(6)))
    network = conv4(6, channels=4, shape=(1, 16, 16))
    with pytest.raises(ValueError, match=r"batch norm '1' takes its statistics over padding too.*conv4-padded"):
        family.check(network)
    family.check(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(256, 6)).eval())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": (6, 2)}, "ways must be a range from the fewest to the most, got 6:2"),
        ({"ways": (1, 2)}, "ways must be an integer of at least 2, got 1"),
        ({"ways": (9, 9)}, "got 9 of 8; ask for fewer ways"),
        ({"shots": (0, 3)}, "shots must be an integer of at least 1, got 0"),
        ({"queries": 8}, "queries must leave a support image of each class, got 8, but a class has only 8"),
        ({"imbalance": 0.5}, "imbalance must be a number of at least 1"),
        ({"support_limit": 5}, "support_limit must be an integer of at least 6, got 5"),
    ],
)
def test_bad_ranges(changes, message):
    with pytest.raises(ValueError, match=message):
        varied(**changes)
