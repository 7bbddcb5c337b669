"""The episode sampler: what may be in an episode, and how often."""

from __future__ import annotations

import pytest
import torch

from fastmeta.tasks import Characters, FewShot
from fastmeta.tasks.augment import random_affine, warp

SIZES = {"A": 7, "B": 5, "C": 6}
DRAWERS = 4


def numbered() -> Characters:
    """Characters whose pixels tell who they are: pixel (0, 0) is the character, (0, 1) the drawer + 1."""
    count = sum(SIZES.values())
    images = torch.zeros(count, DRAWERS, 28, 28, dtype=torch.uint8)
    images[:, :, 0, 0] = torch.arange(1, count + 1)[:, None]
    images[:, :, 0, 1] = torch.arange(1, DRAWERS + 1)
    alphabet = torch.arange(3).repeat_interleave(torch.tensor(list(SIZES.values())))
    names = tuple(f"{name}/character{i:02}" for name, size in SIZES.items() for i in range(1, size + 1))
    return Characters(images, torch.full((count,), DRAWERS), alphabet, tuple(SIZES), names)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Character and drawer of unturned images."""
    return (x[:, :, 0, 0, 0] * 255).round().long() - 1, (x[:, :, 0, 0, 1] * 255).round().long() - 1


@pytest.mark.parametrize("within_alphabet", [True, False])
def test_episodes(within_alphabet):
    family = FewShot(numbered(), ways=5, shots=1, queries=3, within_alphabet=within_alphabet)
    support_x, support_y, query_x, query_y = family.sample(300, generator())
    assert support_x.shape == (300, 5, 1, 28, 28)
    assert query_x.shape == (300, 15, 1, 28, 28)
    assert support_x.dtype == torch.float32
    assert support_y.dtype == torch.int64
    character, drawer = read(torch.cat([support_x, query_x], dim=1))
    labels = torch.cat([support_y, query_y], dim=1)
    alphabet = numbered().alphabet[character]
    alphabets = [len(row.unique()) for row in alphabet]
    assert (max(alphabets) == 1) == within_alphabet
    for row, numbers, drawers in zip(labels, character, drawer, strict=True):
        of_label = [numbers[row == label].unique() for label in range(5)]
        assert all(len(one) == 1 for one in of_label), "a label is one character"
        assert torch.cat(of_label).unique().numel() == 5, "characters of a task differ"
        assert all(drawers[row == label].unique().numel() == 4 for label in range(5)), "drawings differ"
    assert character[:, 0].unique().numel() == 18, "every character comes first some time"


def test_alphabets_are_drawn_uniformly():
    family = FewShot(numbered(), ways=5, shots=1, queries=1, within_alphabet=True)
    alphabet = numbered().alphabet[read(family.sample(3000, generator()).support_x)[0][:, 0]]
    counts = torch.bincount(alphabet, minlength=3)
    assert (counts - 1000).abs().max() < 120, "three standard deviations are 77"


def test_inner_batches_are_balanced():
    episodes = FewShot(numbered(), ways=3, shots=2, queries=1).sample(2, generator())
    assert episodes.support_y.tolist() == [[0, 1, 2, 0, 1, 2]] * 2


def test_rotations_and_mirror_images_are_classes_of_their_own():
    characters = numbered()
    family = FewShot(characters, ways=2, shots=1, queries=1, rotations=True, mirrored=True)
    assert family.classes == 8 * 18
    corners = torch.zeros(4)
    for x in family.sample(400, generator()).support_x.flatten(0, 1):
        lit = x[0, [0, 0, -1, -1], [0, -1, 0, -1]] > 0
        assert lit.sum() == 1
        corners += lit
    assert (corners > 100).all()


def test_a_turned_alphabet_is_one_alphabet():
    family = FewShot(numbered(), ways=5, shots=1, queries=1, within_alphabet=True, rotations=True)
    x = family.sample(100, generator()).support_x
    lit = x[:, :, 0, [0, 0, -1, -1], [0, -1, 0, -1]] > 0
    assert (lit.any(dim=1).sum(dim=1) == 1).all(), "all characters of a task are turned alike"
    assert lit.any(dim=1).any(dim=0).all()


def test_a_turned_class_is_one_character():
    family = FewShot(numbered(), ways=2, shots=2, queries=2, rotations=True)
    episodes = family.sample(50, generator())
    x = torch.cat([episodes.support_x, episodes.query_x], dim=1).view(50, 4, 2, 28 * 28)
    # The brightest pixel is the character or the drawer; where it is the character, all drawings agree.
    bright = x.amax(dim=3)
    named = (bright * 255 > DRAWERS).all(dim=1)
    assert named.any()
    assert (bright.amax(dim=1) == bright.amin(dim=1))[named].all()


def test_the_generator_decides():
    family = FewShot(numbered(), ways=4, shots=1, queries=1, augment=1.0, augment_classes=1.0)
    first, again, other = (family.sample(3, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.support_x, other.support_x)


def test_missing_drawings_are_never_drawn():
    characters = numbered()
    characters.images[2, 2:] = 0
    characters.drawers[2] = 2
    family = FewShot(characters, ways=18, shots=1, queries=1)
    episodes = family.sample(60, generator())
    assert (read(episodes.support_x)[1] >= 0).all()
    assert (read(episodes.query_x)[1] >= 0).all()


def test_too_few_drawings():
    with pytest.raises(ValueError, match=r"got 2 \+ 3, but A/character01 has 4; ask for fewer shots"):
        FewShot(numbered(), ways=2, shots=2, queries=3)


def test_too_few_characters():
    with pytest.raises(ValueError, match=r"ways must be at most the number of classes, got 19 of 18"):
        FewShot(numbered(), ways=19, shots=1, queries=1)
    assert FewShot(numbered(), ways=19, shots=1, queries=1, rotations=True).classes == 72


def test_an_alphabet_with_too_few_characters():
    message = r"too few in B \(5\); enough in A \(7\), C \(6\).*--exclude-alphabets B\)"
    with pytest.raises(ValueError, match=message):
        FewShot(numbered(), ways=6, shots=1, queries=1, within_alphabet=True)
    kept = numbered().select(drop=["B"])
    assert FewShot(kept, ways=6, shots=1, queries=1, within_alphabet=True).classes == 13


@pytest.mark.parametrize(
    "options",
    [{"ways": 1}, {"shots": 0}, {"queries": 0}, {"augment": -0.1}, {"augment_classes": float("nan")}],
)
def test_bad_options(options):
    legal = {"ways": 2, "shots": 1, "queries": 1}
    with pytest.raises(ValueError, match=rf"{next(iter(options))} must .*, got"):
        FewShot(numbered(), **legal | options)


def test_images_differ_more_than_classes():
    """Distortions: `augment_classes` alone keeps equal drawings equal, `augment` makes them differ."""
    characters = numbered()
    characters.images[:] = torch.randint(0, 256, (18, 1, 28, 28), dtype=torch.uint8)
    spread = {}
    for name in ("augment", "augment_classes"):
        family = FewShot(characters, ways=3, shots=2, queries=2, **{name: 1.0})
        x = torch.cat(family.sample(5, generator())[::2], dim=1).view(5, 4, 3, 28, 28)
        spread[name] = x.std(dim=1).mean().item()
        plain = characters.images[:, 0].float() / 255
        assert (x[:, 0].reshape(15, 1, -1) - plain.view(1, 18, -1)).abs().mean(2).min() > 0.05
    assert spread["augment_classes"] < 1e-6
    assert spread["augment"] > 0.05


def test_affine_maps():
    maps = random_affine((4000,), strength=1.0, generator=generator())
    assert maps.shape == (4000, 3, 3)
    torch.testing.assert_close(maps[:, 2], torch.tensor([0.0, 0.0, 1.0]).expand(4000, 3))
    area = torch.linalg.det(maps[:, :2, :2])
    assert area.min() > 0.66
    assert area.max() < 1.5
    assert maps[:, :2, 2].abs().max() <= 0.15
    still = random_affine((2, 3), strength=0.0, generator=generator())
    torch.testing.assert_close(still, torch.eye(3).expand(2, 3, 3, 3))


def test_warp_identity_and_translation():
    images = torch.rand(2, 3, 1, 28, 28)
    identity = torch.eye(3).expand(2, 3, 3, 3).clone()
    torch.testing.assert_close(warp(images, identity), images, atol=1e-5, rtol=0)
    identity[..., 0, 2] = 2 / 28  # looks one pixel to the right
    moved = warp(images, identity)
    torch.testing.assert_close(moved[..., :-1], images[..., 1:], atol=1e-5, rtol=0)
    assert (moved[..., -1].abs() < 1e-5).all()
