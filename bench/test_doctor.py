"""The library's own list of workloads, for `fastmeta doctor`, is that of the benchmark."""

from __future__ import annotations

import pytest
import torch

from fastmeta.doctor import WORKLOADS as OF_THE_LIBRARY

from .networks import LOSSES
from .workloads import WORKLOADS


def test_names():
    assert set(WORKLOADS) - set(OF_THE_LIBRARY) == {"siren-8", "mobilenet", "lora-gpt2"}
    assert list(OF_THE_LIBRARY) == [name for name in WORKLOADS if name in OF_THE_LIBRARY]


@pytest.mark.parametrize("name", OF_THE_LIBRARY)
def test_the_same_network_data_and_inner_loop(name: str):
    mine, want = OF_THE_LIBRARY[name], WORKLOADS[name]
    assert (mine.sample, mine.tasks, mine.support, mine.query, mine.steps, mine.lr) == (
        *(want.sample_shape, want.tasks, want.support, want.query, want.steps, want.lr),
    )
    layers = [
        [(type(layer), repr(layer), [p.shape for p in layer.parameters()]) for layer in model.children()]
        for model in (mine.network(), want.model())
    ]
    assert layers[0] == layers[1]
    learner = mine.learner(torch.device("cpu"), tried=False, precision="float32")
    assert learner.inner_loss is LOSSES[want.loss]
    batch = mine.batch(1, torch.device("cpu"))
    assert batch.support_x.shape == (1, want.support, *want.sample_shape)
    assert batch.query_y.dtype == (torch.int64 if mine.classes else torch.float32)
    assert (mine.classes or mine.outputs) == want.outputs
