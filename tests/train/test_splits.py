"""Published splits of Omniglot, and runs that are scored by them."""

from __future__ import annotations

import re

import pytest
import torch

from fastmeta.tasks import Characters, split_omniglot
from fastmeta.tasks.omniglot_splits import _FOLDER
from fastmeta.train.cli import main
from fastmeta.train.families import omniglot

pytestmark = pytest.mark.usefixtures("one_thread")


def everything() -> Characters:
    """As many characters as Omniglot has, under the names that the lists know; what is left is of made-up alphabets."""
    most: dict[str, int] = {}
    for line in (_FOLDER / "omniglot_finn.txt").read_text().splitlines():
        if not line.startswith("#"):
            alphabet, _, *numbers = line.split()
            most[alphabet] = max(most.get(alphabet, 0), *map(int, numbers))
    names = [f"{alphabet}/character{i:02}" for alphabet, count in most.items() for i in range(1, count + 1)]
    names = sorted(names + [f"Made_up/character{i:02}" for i in range(1, 1623 - len(names) + 1)])
    alphabets = sorted({name.split("/")[0] for name in names})
    alphabet = torch.tensor([alphabets.index(name.split("/")[0]) for name in names])
    images = torch.randint(256, (1623, 4, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Characters(images, torch.full((1623,), 4), alphabet, tuple(alphabets), tuple(names))


def test_random_characters():
    whole = everything()
    parts = split_omniglot(whole, "finn")
    assert parts.validation is not None
    chosen = (parts.train, parts.validation, parts.test)
    assert [len(part.names) for part in chosen] == [1100, 100, 423]
    assert {name for part in chosen for name in part.names} == set(whole.names)
    for part in chosen:
        assert len(part.alphabets) > 25, "of nearly all alphabets"
        for i in (0, len(part.names) - 1):
            row = whole.names.index(part.names[i])
            assert torch.equal(part.images[i], whole.images[row])
            assert part.alphabets[part.alphabet[i]] == part.names[i].split("/")[0]


def test_alphabets():
    parts = split_omniglot(everything(), "alphabets")
    assert parts.validation is None
    assert len(parts.test.alphabets) == 20
    assert {"Angelic", "ULOG"} <= set(parts.test.alphabets)
    assert {"Greek", "Latin"} <= set(parts.train.alphabets)
    assert not set(parts.test.alphabets) & set(parts.train.alphabets)


def test_what_is_not_all_of_omniglot():
    whole = everything()
    with pytest.raises(
        ValueError, match=r"all 1,623 characters of Omniglot, got 1,607; give images_background.zip and"
    ):
        split_omniglot(_without(whole, 16), "finn")
    names = tuple(name.replace("Angelic", "Angel") for name in whole.names)
    other = Characters(whole.images, whole.drawers, whole.alphabet, whole.alphabets, names)
    for split in ("finn", "alphabets"):
        with pytest.raises(ValueError, match=r"the data lack .* such as Angelic"):
            split_omniglot(other, split)
    with pytest.raises(ValueError, match="split must be one of finn, alphabets, got 'lake'"):
        split_omniglot(whole, "lake")


def _without(whole: Characters, count: int) -> Characters:
    """The same but for the first `count` characters."""
    left = slice(count, None)
    return Characters(whole.images[left], whole.drawers[left], whole.alphabet[left], whole.alphabets, whole.names[left])


def test_runs_are_scored_on_unseen_characters_in_both_ways(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = everything()
    monkeypatch.setattr(omniglot, "load_omniglot", lambda paths: whole if len(paths) == 2 else _without(whole, 16))
    small = ["--channels", "4", "--iterations", "2", "--meta-batch", "2", "--episodes", "4", "--eval-steps", "1"]
    command = ["train", "--preset", "maml-5w1s-finn", "--data", "a.zip", "b.zip", *small, "--no-rotations"]
    assert main(command) == 0
    out = capsys.readouterr().out
    for part in ("test", "validation"):
        assert f"accuracy over 4 episodes of the {part} characters, 95 % confidence:" in out
    assert len(re.findall(r"  transductive after 1 inner step +\d+\.\d\d ± ", out)) == 2
    assert len(re.findall(r"  inductive    after 1 inner step +\d+\.\d\d ± ", out)) == 2
    assert main([*command, "--alphabets", "Greek", "--no-resume"]) == 2
    assert "split finn is of all alphabets" in capsys.readouterr().err
    assert main(["train", "--preset", "maml-5w1s-finn", "--data", "a.zip", *small]) == 2
    assert "give images_background.zip and images_evaluation.zip together" in capsys.readouterr().err
