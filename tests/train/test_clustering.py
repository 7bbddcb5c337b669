"""The clustering autoencoder: loss, gradients, measures."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from meta_steps import assert_agrees_with_reference
from torch.nn import functional as F

import fastmeta
from fastmeta.models import ClusteringAutoencoder
from fastmeta.models.clustering_loss import ClusteringLoss
from fastmeta.tasks import ClassEpisodes, ClassTable, Images
from fastmeta.tasks.derived import Unlabelled
from fastmeta.tasks.image_sets import ImageSets
from fastmeta.train.scores.clusters import clustering_accuracy, compare_clusters, score_clusters
from fastmeta.train.scores.compare import LR_FACTORS
from fastmeta.train.scores.evaluate import draw

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bars(ways: int = 4, size: int = 8) -> ClassEpisodes:
    """Class c is a bright bar in row 2 c, slightly noisy."""
    pixels = torch.randint(0, 20, (ways * 12, 1, size, size), dtype=torch.uint8, generator=generator())
    labels = torch.arange(ways).repeat_interleave(12)
    pixels[torch.arange(len(labels)), 0, 2 * labels] = 255
    return ClassEpisodes(ClassTable.of_labels(pixels, labels), ways=ways, shots=5, queries=5)


def network(dtype: torch.dtype = torch.float32) -> ClusteringAutoencoder:
    torch.manual_seed(0)
    return ClusteringAutoencoder((1, 8, 8), clusters=3, latent=3, channels=2).to(dtype)


def test_assignments():
    model = network(torch.float64)
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    reconstruction, q = model(x)
    assert reconstruction.shape == x.shape
    codes = model.encoder(x)
    codes = (codes - codes.mean(0)) / (codes.var(0, unbiased=False) + model.norm.eps).sqrt()
    distance = torch.cdist(codes, model.centres).square()
    kernel = 1 / (1 + distance)
    torch.testing.assert_close(q, kernel / kernel.sum(1, keepdim=True))


def test_loss():
    """By the paper's formulas, one number at a time; the target passes no gradient on."""
    q = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]], dtype=torch.float64, requires_grad=True)
    x, y = torch.rand(2, 3, 1, 2, 2, dtype=torch.float64)
    loss = ClusteringLoss(weight=0.5)((x, q), y)
    known = q.tolist()
    size = [sum(row[j] for row in known) for j in range(2)]
    p = [[known[i][j] ** 2 / size[j] for j in range(2)] for i in range(3)]
    p = [[value / sum(row) for value in row] for row in p]
    divergence = sum(p[i][j] * np.log(p[i][j] / known[i][j]) for i in range(3) for j in range(2)) / 3
    assert loss.item() == pytest.approx(F.mse_loss(x, y).item() + 0.5 * divergence, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, q)
    torch.testing.assert_close(gradient, -0.5 * torch.tensor(p) / q.detach() / 3, rtol=1e-6, atol=1e-9)


def test_the_exact_meta_gradient():
    episodes = Unlabelled(bars(3)).sample(2, generator())
    assert all(torch.equal(a, b) for a, b in (episodes[:2], episodes[2:]))
    episodes = type(episodes)(*(x[:, :6].double() for x in episodes))
    assert_agrees_with_reference(network(torch.float64), episodes, loss=ClusteringLoss(weight=1.0))


def test_sets_of_images():
    images = Images(torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone(), None)
    x, y, query, _ = ImageSets(images, samples=9).sample(20, generator())
    assert torch.equal(x, y)
    assert torch.equal(x, query)
    assert all(len(row.unique()) == 9 for row in x[:, :, 0, 0, 0])
    with pytest.raises(ValueError, match="at least 41 images, got 40"):
        ImageSets(images, samples=41)


@pytest.mark.parametrize(
    "clusters, labels, accuracy",
    [
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),
        ([0, 0, 0, 0], [0, 0, 1, 1], 0.5),
        ([2, 2, 1, 0], [0, 0, 1, 1], 0.75),
        ([0, 1, 2, 2, 2], [0, 0, 0, 1, 1], 0.6),
    ],
)
def test_clustering_accuracy(clusters, labels, accuracy):
    assert clustering_accuracy(np.array(clusters), np.array(labels)) == pytest.approx(accuracy)


def test_measures():
    """A network that reconstructs known classes well and separates them is seen to, and a constant one is not."""
    family = bars()
    torch.manual_seed(1)
    learner = fastmeta.MAML(
        ClusteringAutoencoder((1, 8, 8), clusters=3, latent=8, channels=8),
        inner_loss=ClusteringLoss(weight=0.02),
        inner_optimizer=fastmeta.Adam(lr=0.02),
    )
    batches = [family.sample(6, generator())]
    scores = score_clusters(learner, batches, ways=3, steps=(0, 120))
    assert all(len(value) == 6 for values in scores.values() for value in values.values())
    before, after = ({measure: value.mean().item() for measure, value in scores[n].items()} for n in (0, 120))
    assert after["reconstruction error"] < 0.5 * before["reconstruction error"]
    assert after["anomaly detection, AUROC"] > 0.9
    assert after["clustering accuracy"] > before["clustering accuracy"]
    assert 0 <= after["normalised mutual information"] <= 1 + 1e-9


def test_labels_have_no_say_in_adaptation():
    """Classes renamed among the known ones change nothing: labels only say what is the anomaly, and how it went."""
    learner = fastmeta.MAML(network(), inner_loss=ClusteringLoss(), inner_optimizer=fastmeta.SGD(lr=0.1))
    batch = bars().sample(3, generator())
    names = torch.tensor([2, 0, 1, 3])
    renamed = batch._replace(support_y=names[batch.support_y], query_y=names[batch.query_y])
    first, other = (score_clusters(learner, [b], ways=3, steps=(2,))[2] for b in (batch, renamed))
    for measure, values in first.items():
        torch.testing.assert_close(values, other[measure])


def test_comparison():
    def learner(model, lr):
        return fastmeta.MAML(model, inner_loss=ClusteringLoss(), inner_optimizer=fastmeta.SGD(lr=lr))

    family = bars()
    options = {"tuning": bars(3), "inner_lr": 0.1, "steps": (0, 1), "episodes": 3, "seed": 1}
    first, again = (compare_clusters({"one": network()}, learner, family, **options) for _ in range(2))
    assert first == again
    assert first[0].title == "clustering accuracy"
    assert first[0].unit == "clustering accuracy, %"
    assert first[-1].unit == "reconstruction error"


def test_the_step_size_is_the_one_that_clusters_training_classes_best():
    def learner(model, lr):
        return fastmeta.MAML(model, inner_loss=ClusteringLoss(1.0), inner_optimizer=fastmeta.SGD(lr=lr))

    model, tuning, found = network(), bars(3), {}
    options = {"tuning": tuning, "inner_lr": 30.0, "steps": (3,), "episodes": 1, "seed": 1}
    (chosen,) = {c.curves["one"].inner_lr for c in compare_clusters({"one": model}, learner, bars(), **options)}
    for lr in (30.0 * factor for factor in LR_FACTORS):
        accuracies = []
        for x, _, query_x, query_y in draw(tuning, episodes=40, meta_batch=10, seed=2):
            q = learner(model, lr).adapt(x, x, steps=3)(query_x)[1].argmax(2)
            accuracies += [clustering_accuracy(a.numpy(), b.numpy()) for a, b in zip(q, query_y, strict=True)]
        found[lr] = np.mean(accuracies)
    assert found[chosen] == max(found.values()) > min(found.values())


def test_odd_images_are_refused():
    with pytest.raises(ValueError, match="sides must be multiples of 4, got 30 × 28"):
        ClusteringAutoencoder((1, 30, 28))


def test_measures_need_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(RuntimeError, match=r'clustering needs scikit-learn: pip install "fastmeta\[train\]"'):
        clustering_accuracy(np.array([0, 1]), np.array([0, 1]))
