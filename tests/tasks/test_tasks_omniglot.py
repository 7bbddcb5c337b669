"""Reading Omniglot and its official one-shot runs, whole and damaged."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from omniglot_files import background, one_shot_runs, png, write_folder, write_zip
from PIL import Image

from fastmeta.tasks import load_omniglot, load_runs, stack_runs

ALPHABETS = {"Greek": 3, "Early_Aramaic": 2}


def test_zip_and_folder_give_the_same(tmp_path):
    files = background(ALPHABETS, drawers=4)
    zipped = load_omniglot([write_zip(tmp_path / "a.zip", files)])
    folder = write_folder(tmp_path / "parent", files)
    assert zipped.images.shape == (5, 4, 28, 28)
    assert zipped.images.dtype == torch.uint8
    assert zipped.alphabets == ("Early_Aramaic", "Greek")
    assert zipped.alphabet.tolist() == [0, 0, 1, 1, 1]
    assert zipped.names[0] == "Early_Aramaic/character01"
    for path in (folder, folder / "images_background", str(folder)):
        assert load_omniglot([path]).fingerprint() == zipped.fingerprint()


def test_ink_is_bright_and_averaged(tmp_path):
    files = background({"Greek": 1}, drawers=1)
    (name,) = files
    paper = Image.new("1", (105, 105), 1)
    paper.paste(0, (0, 0, 105, 52))
    buffer = io.BytesIO()
    paper.save(buffer, format="PNG")
    image = load_omniglot([write_zip(tmp_path / "a.zip", {name: buffer.getvalue()})]).images[0, 0]
    assert (image[:12] > 240).all()
    assert (image[16:] < 15).all()
    # 52 of 105 rows are ink, and resampling keeps the mean.
    assert image.float().mean().item() / 255 == pytest.approx(52 / 105, abs=0.02)


def test_characters_in_two_files_count_once(tmp_path):
    small1 = write_zip(tmp_path / "small1.zip", background({"Greek": 3, "Korean": 2}, root="small1"))
    small2 = write_zip(tmp_path / "small2.zip", background({"Greek": 3, "Latin": 4}, root="small2"))
    both = load_omniglot([small1, small2])
    assert both.sizes() == {"Greek": 3, "Korean": 2, "Latin": 4}
    assert both.images.shape[1] == 5
    assert both.fingerprint() == load_omniglot([small2, small1]).fingerprint()
    assert both.select(keep=["Greek"]).fingerprint() == load_omniglot([small1]).select(drop=["Korean"]).fingerprint()


def test_drawings_of_one_character_in_two_files_are_joined(tmp_path):
    files = background({"Greek": 2}, drawers=3)
    late = {name: data for name, data in files.items() if name.endswith("character01/0301_03.png")}
    early = {name: data for name, data in files.items() if name not in late}
    halves = [write_zip(tmp_path / "a.zip", early), write_zip(tmp_path / "b.zip", late)]
    assert load_omniglot(halves[:1]).drawers.tolist() == [2, 3]
    assert load_omniglot(halves).fingerprint() == load_omniglot([write_folder(tmp_path, files)]).fingerprint()


def test_select(tmp_path):
    everything = load_omniglot([write_zip(tmp_path / "a.zip", background({"A": 2, "B": 3, "C": 1}))])
    chosen = everything.select(drop=["B"])
    assert chosen.alphabets == ("A", "C")
    assert chosen.names == ("A/character01", "A/character02", "C/character01")
    assert chosen.alphabet.tolist() == [0, 0, 1]
    assert torch.equal(chosen.images, everything.images[[0, 1, 5]])
    with pytest.raises(ValueError, match="no alphabet is named Klingon; the data holds A, B, C"):
        everything.select(keep=["Klingon"])
    with pytest.raises(ValueError, match="no alphabet is left: keep A, leave out A"):
        everything.select(keep=["A"], drop=["A"])


def test_no_path():
    with pytest.raises(ValueError, match="data must name at least one zip file or folder"):
        load_omniglot([])


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.zip does not exist"):
        load_omniglot([tmp_path / "absent.zip"])


def test_path_without_characters(tmp_path):
    write_zip(tmp_path / "images_background.zip", background(ALPHABETS, drawers=1))
    with pytest.raises(ValueError, match=r"holds no image named .*; it holds images_background.zip: name those"):
        load_omniglot([tmp_path])


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_truncated_zip(tmp_path, keep):
    path = write_zip(tmp_path / "a.zip", background(ALPHABETS, drawers=1))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.zip is not a readable zip file .* download it again"):
        load_omniglot([path])


def test_damaged_member(tmp_path):
    files = background({"Greek": 1}, drawers=2)
    path = write_zip(tmp_path / "a.zip", files)
    data = bytearray(path.read_bytes())
    middle = data.find(b"0301_02.png") + len("0301_02.png") + len(files[list(files)[1]]) // 2
    data[middle] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.zip!images_background/Greek/character01/0301_02\.png cannot be"):
        load_omniglot([path])


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no image" + b])
def test_damaged_image(tmp_path, damage):
    files = background({"Greek": 1}, drawers=2)
    name = list(files)[1]
    files[name] = damage(files[name])
    with pytest.raises(ValueError, match=r"0301_02\.png is not a readable image .* download it again"):
        load_omniglot([write_folder(tmp_path, files)])


def test_real_files(shared):
    both = load_omniglot(sorted((shared / "data" / "omniglot").glob("images_background_small*.zip")))
    assert both.images.shape == (242, 20, 28, 28)
    assert both.sizes()["Greek"] == 24
    assert both.sizes()["Tagalog"] == 17
    assert (both.drawers == 20).all()
    ink = both.images.float().mean().item() / 255
    assert 0.02 < ink < 0.15, "strokes cover a small part of a page"


@pytest.mark.parametrize("root", ["", "all_runs/"])
@pytest.mark.parametrize("zipped", [True, False])
def test_runs(tmp_path, root, zipped):
    files = one_shot_runs(3, 6, root=root)
    path = write_zip(tmp_path / "r.zip", files) if zipped else write_folder(tmp_path / "r", files)
    runs = load_runs(path)
    assert [run.name for run in runs] == ["run01", "run02", "run03"]
    for run in runs:
        assert run.support_x.shape == run.query_x.shape == (6, 1, 28, 28)
        assert run.support_y.tolist() == list(range(6))
        assert sorted(run.query_y.tolist()) == list(range(6))
        assert run.query_y.tolist() != list(range(6)), "test images are shuffled"
        # A test image is drawn with the pixels of its class, so the labels must undo the shuffle.
        assert torch.equal(run.support_x[run.query_y], run.query_x)
        assert run.support_x.unique(dim=0).shape[0] == 6


def test_runs_stack(tmp_path):
    runs = load_runs(write_zip(tmp_path / "r.zip", one_shot_runs(2, 5)))
    episodes = stack_runs(runs, torch.device("cpu"))
    assert episodes.support_x.shape == (2, 5, 1, 28, 28)
    assert episodes.query_y.shape == (2, 5)
    smaller = load_runs(write_zip(tmp_path / "s.zip", one_shot_runs(1, 4)))
    with pytest.raises(ValueError, match="runs must all have as many classes"):
        stack_runs(runs + smaller, torch.device("cpu"))


def test_runs_missing(tmp_path):
    with pytest.raises(ValueError, match=r"holds no class_labels\.txt"):
        load_runs(write_zip(tmp_path / "r.zip", background(ALPHABETS, drawers=1)))


def test_runs_with_a_missing_image(tmp_path):
    files = one_shot_runs(1, 3)
    del files["run01/test/item02.png"]
    for path in (write_zip(tmp_path / "r.zip", files), write_folder(tmp_path / "r", files)):
        with pytest.raises(ValueError, match=r"run01/test/item02\.png (is missing|cannot be read)"):
            load_runs(path)


@pytest.mark.parametrize("text, message", [("one two three\n", "line 1: expected"), ("\n", "is empty")])
def test_runs_with_bad_labels(tmp_path, text, message):
    files = one_shot_runs(1, 3) | {"run01/class_labels.txt": text.encode()}
    with pytest.raises(ValueError, match=rf"class_labels\.txt,? ?{message}"):
        load_runs(write_zip(tmp_path / "r.zip", files))


def test_png_stand_in_is_faithful():
    image = Image.open(io.BytesIO(png(3)))
    assert (image.mode, image.size) == ("1", (105, 105))
    assert 0.1 < np.asarray(image).mean() < 0.9
