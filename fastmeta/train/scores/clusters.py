"""How well a clustering autoencoder clusters, reconstructs and finds anomalies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmeta.algorithms.base import MetaLearner
from fastmeta.tasks.base import TaskFamily
from fastmeta.tasks.class_episodes import ClassEpisodes

from .compare import Comparison, Curve, best_lr
from .evaluate import Estimate, draw

MEASURES = {
    "clustering accuracy": True,
    "normalised mutual information": True,
    "anomaly detection, AUROC": True,
    "reconstruction error": False,
}
"""What is reported, and whether as a share of 1."""


_NO_SCIKIT_LEARN = 'clustering needs scikit-learn: pip install "fastmeta[train]"'


def clustering_accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples whose cluster is their class's, under the best pairing of clusters and classes (Hungarian).

    Args:
        clusters: of each sample [n], numbered from 0.
        labels: of each sample [n], numbered from 0.

    Raises:
        RuntimeError: without scikit-learn, which brings SciPy (`pip install "fastmeta[train]"`).
    """
    assign, _, _ = _metrics()
    size = max(clusters.max(), labels.max()) + 1
    counts = np.zeros((size, size))
    np.add.at(counts, (clusters, labels), 1)
    rows, columns = assign(counts, maximize=True)
    return counts[rows, columns].sum() / len(labels)


def compare_clusters(
    starts: Mapping[str, nn.Module],
    learner: Callable[[nn.Module, float], MetaLearner],
    family: ClassEpisodes,
    *,
    tuning: TaskFamily,
    inner_lr: float,
    steps: Sequence[int],
    episodes: int,
    seed: int,
) -> list[Comparison]:
    """Adapt every start to unlabelled images of all classes of a task but the last, and score it on other images.

    Clusters are scored on the classes that it adapted to; the last class of a task is the anomaly, which the error of
    the reconstruction should distinguish from the others. A start has the step size that clusters best on `tuning`.
    Their loss could not choose it: the divergence is least where all assignments are alike, for which no step at all is
    best.

    Args:
        starts: `ClusteringAutoencoder`s by name.
        learner: (network, inner step size) → the meta-learner that adapts it.
        family: labelled episodes of one class more than there are clusters.
        tuning: labelled episodes of the classes trained on, which the step sizes are chosen on.
        inner_lr: the middle of the step sizes (`compare.LR_FACTORS`).
        steps: numbers of inner steps, ascending.
        episodes: how many.
        seed: of the episodes.

    Returns:
        One comparison a measure (`MEASURES`).
    """
    curves: dict[str, dict[str, Curve]] = {measure: {} for measure in MEASURES}
    for name, model in starts.items():
        score = partial(_tuning_score, partial(learner, model), tuning, steps[-1], seed + 1)
        lr = best_lr(score, inner_lr, highest=True)
        drawn = draw(family, episodes=episodes, meta_batch=10, seed=seed)
        scores = score_clusters(learner(model, lr), drawn, ways=family.ways - 1, steps=steps)
        for measure in MEASURES:
            curves[measure][name] = Curve(lr, {n: Estimate.of(values[measure]) for n, values in scores.items()})
    return [Comparison(measure, share, curves[measure], measure) for measure, share in MEASURES.items()]


@torch.no_grad()
def score_clusters(
    learner: MetaLearner, batches: Any, *, ways: int, steps: Sequence[int]
) -> dict[int, dict[str, Tensor]]:
    """{steps: {measure: [episodes]}} of labelled episodes whose class number `ways` is the anomaly."""
    values: dict[int, dict[str, list[float]]] = {count: {measure: [] for measure in MEASURES} for count in steps}
    for support_x, support_y, query_x, query_y in batches:
        inside = support_y[0] < ways  # classes stand in the same order in every task
        x = support_x[:, inside]
        for count in steps:
            reconstruction, q = learner.adapt(x, x, steps=count)(query_x)
            error = (reconstruction - query_x).square().flatten(2).mean(2).cpu().numpy()
            clusters, labels = q.argmax(2).cpu().numpy(), query_y.cpu().numpy()
            for task in range(len(x)):
                for measure, value in _measure(clusters[task], labels[task], error[task], ways).items():
                    values[count][measure].append(value)
    return {count: {m: torch.tensor(v) for m, v in found.items()} for count, found in values.items()}


def _measure(clusters: np.ndarray, labels: np.ndarray, error: np.ndarray, ways: int) -> dict[str, float]:
    _, mutual_information, auroc = _metrics()
    known = labels < ways
    found = (
        clustering_accuracy(clusters[known], labels[known]),
        mutual_information(labels[known], clusters[known]),
        auroc(~known, error),
        error[known].mean(),
    )
    return dict(zip(MEASURES, map(float, found), strict=True))


def pixel_clusters(family: ClassEpisodes, *, episodes: int, seed: int) -> dict[str, Estimate]:
    """What k-means on the pixels of the same query images reaches: accuracy and normalised mutual information."""
    _, mutual_information, _ = _metrics()
    kmeans = _kmeans()
    ways, found = family.ways - 1, []
    for _, _, query_x, query_y in draw(family, episodes=episodes, meta_batch=10, seed=seed):
        for x, y in zip(query_x.cpu().numpy(), query_y.cpu().numpy(), strict=True):
            known = y < ways
            clusters = kmeans(ways, n_init=3, random_state=seed).fit_predict(x[known].reshape(known.sum(), -1))
            found.append((clustering_accuracy(clusters, y[known]), mutual_information(y[known], clusters)))
    accuracy, information = torch.tensor(found).T
    return {"clustering accuracy": Estimate.of(accuracy), "normalised mutual information": Estimate.of(information)}


@torch.no_grad()
def _tuning_score(
    learner: Callable[[float], MetaLearner], family: TaskFamily, steps: int, seed: int, lr: float
) -> float:
    """Mean clustering accuracy on 40 tasks; where an inner loop diverges, that of a single cluster."""
    adapter, found = learner(lr), []
    for support_x, _, query_x, query_y in draw(family, episodes=40, meta_batch=10, seed=seed):
        _, q = adapter.adapt(support_x, support_x, steps=steps)(query_x)
        found += map(clustering_accuracy, q.argmax(2).cpu().numpy(), query_y.cpu().numpy())
    return float(np.mean(found))


def check_libraries() -> None:
    """Raise RuntimeError without what scores clusters."""
    _metrics()
    _kmeans()


def _kmeans() -> Any:
    try:
        from sklearn import cluster
    except ImportError as error:
        raise RuntimeError(_NO_SCIKIT_LEARN) from error
    return cluster.KMeans


def _metrics() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Hungarian assignment, normalised mutual information, area under the ROC curve."""
    try:
        from scipy.optimize import linear_sum_assignment
        from sklearn.metrics import normalized_mutual_info_score, roc_auc_score
    except ImportError as error:
        raise RuntimeError(_NO_SCIKIT_LEARN) from error
    return linear_sum_assignment, normalized_mutual_info_score, roc_auc_score
