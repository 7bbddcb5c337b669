"""Masked characters."""

from __future__ import annotations

import pytest
import torch

from fastmeta.tasks import MaskedText, as_text, load_text
from fastmeta.tasks.datasets.text import NOT_MASKED

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counting(count: int = 400):
    """A text of which every character is another: its number is its place."""
    return as_text("".join(chr(0x4E00 + i) for i in range(count)))


def test_characters_are_numbered():
    text = as_text("hello")
    assert (text.vocabulary, text.symbols) == ("ehlo", 5)
    assert text.tokens.tolist() == [1, 0, 2, 2, 3]
    assert as_text("hey", vocabulary="ehlo").tokens.tolist() == [1, 0, 4], "others share a number"


def test_masked_characters_are_never_visible():
    text = counting()
    family = MaskedText(text, length=20, passage=100, masked=0.2, shots=6, queries=5)
    support_x, support_y, query_x, query_y = family.sample(50, generator())
    for x, y in ((support_x, support_y), (query_x, query_y)):
        hidden = y != NOT_MASKED
        assert (hidden.sum(2) == 4).all()
        assert (x[hidden] == family.mask).all()
        assert (x[~hidden] < text.symbols).all()
        whole = torch.where(hidden, y, x)
        assert (whole.diff(dim=2) == 1).all(), "window and target are the text"
        # every character of this text occurs once: what is hidden stands nowhere else in its window
        assert not (x.unsqueeze(3) == torch.where(hidden, y, -1).unsqueeze(2)).any()
        assert hidden.double().mean((0, 1)).min() > 0.1, "every place is hidden some time"


def test_passages_have_two_halves():
    family = MaskedText(counting(), length=10, passage=60, shots=8, queries=8)
    support_x, support_y, query_x, query_y = family.sample(200, generator())
    place = [torch.where(y == NOT_MASKED, x, y) for x, y in ((support_x, support_y), (query_x, query_y))]
    first, last = (part.amin((1, 2)) for part in place), (part.amax((1, 2)) for part in place)
    (support_low, query_low), (support_high, query_high) = first, last
    assert (support_high < query_low).all()
    assert (query_high - support_low < 60).all()
    assert place[0].min() < 10
    assert place[1].max() > 389


def test_seeds():
    family = MaskedText(counting(), length=8, passage=40)
    first, again, other = (family.sample(4, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.support_x, other.support_x)
    assert counting().fingerprint() == counting().fingerprint() != counting(401).fingerprint()


def test_files(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first ")
    (tmp_path / "c.py").write_text("no")
    text = load_text([tmp_path])
    assert "".join(text.vocabulary[i] for i in text.tokens) == "first second"
    first, last = text.split(0.5)
    assert (len(first.tokens), len(last.tokens)) == (6, 6)


def test_real_text(shared):
    text = load_text([shared / "data/text/tinyshakespeare.txt"])
    assert (len(text.tokens), len(text.vocabulary)) == (1_115_394, 65)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", r"x\.txt is empty"),
        (b" \n\n", r"x\.txt is empty"),
        (b"ab\0cd", r"x\.txt is binary, not text \(a zero byte at 2\)"),
        (b"ab\xff\xfe", r"x\.txt is no UTF-8 text \(invalid start byte at byte 2\)"),
    ],
)
def test_bad_files(tmp_path, data, message):
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_text([tmp_path / "x.txt"])


def test_no_text(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_text([tmp_path / "absent.txt"])
    with pytest.raises(ValueError, match=r"holds no \.txt or \.md file"):
        load_text([tmp_path])
    with pytest.raises(ValueError, match="text is empty"):
        as_text("")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 1}, "length must be an integer of at least 2"),
        ({"masked": 0.0}, "masked must lie between 0 and 1"),
        ({"masked": 1.0}, "masked must lie between 0 and 1"),
        ({"passage": 50}, "passage must be at least twice the length 32, got 50"),
        ({"passage": 500}, "text has 400 characters, fewer than one passage of 500"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedText(counting(), **options)
