"""Images as tasks: places to values."""

import pytest
import torch

from fastmeta.tasks import Images, Pixels


def images(count=3, shape=(3, 4, 5)):
    return Images(
        torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), None
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_all_pixels_of_images():
    source = images()
    tasks = Pixels(source)
    x, y, query_x, query_y = tasks.sample(6, generator())
    assert (x.shape, y.shape) == ((6, 20, 2), (6, 20, 3))
    assert torch.equal(x, query_x)
    assert torch.equal(y, query_y)
    assert x[0, 0].tolist() == [-1, -1]
    assert x[0, 4].tolist() == [-1, 1]  # the end of the first row
    assert x[0, -1].tolist() == [1, 1]
    known = source.floats()
    assert {int((known == picture).flatten(1).all(1).nonzero()) for picture in tasks.pictures(y)} <= {0, 1, 2}
    again = tasks.sample(6, generator())
    assert torch.equal(again.support_y, y)
    assert not torch.equal(tasks.sample(6, generator(1)).support_y, y)


def test_some_pixels_of_each_image():
    x, y, query_x, query_y = Pixels(images(shape=(1, 4, 5)), shots=7).sample(5, generator())
    assert (x.shape, y.shape) == ((5, 7, 2), (5, 7, 1))
    assert query_x.shape == (5, 20, 2)
    for t in range(5):
        places = {tuple(place) for place in x[t].tolist()}
        assert len(places) == 7
        value = dict(zip(map(tuple, query_x[t].tolist()), query_y[t].flatten().tolist(), strict=True))
        assert [value[tuple(place)] for place in x[t].tolist()] == y[t].flatten().tolist()
    assert len({tuple(sorted(map(tuple, places))) for places in x.tolist()}) == 5  # drawn for each image
    support, query = Pixels(images(), shots=9, queries=9).sample(2, generator())[::2]
    assert not torch.equal(support, query)


def test_more_pixels_than_there_are():
    with pytest.raises(ValueError, match="shots must be at most 20, the pixels of an image, got 21"):
        Pixels(images(), shots=21)
    with pytest.raises(ValueError, match="queries must be an integer of at least 1, got 0"):
        Pixels(images(), queries=0)
    with pytest.raises(ValueError, match="tasks must be an integer of at least 1"):
        Pixels(images()).sample(0, generator())
