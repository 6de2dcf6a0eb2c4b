"""Clustering measured against the labels."""

import numpy as np
from numpy.typing import NDArray

from dmlkd.retrieval.metrics import Metric

Labels = NDArray[np.int64]


def kmeans(points: NDArray[np.float32], clusters: int, *, seed: int, iterations: int = 20) -> Labels:
    """Assign points to clusters by FAISS's k-means on all of them, on CUDA if FAISS has it.

    The points are put in the order of their bytes first, so that the clusters do not depend on the order of the rows.

    Args:
        points: (N, D).
        clusters: k, at most N.
        seed: of the initial centroids.
        iterations: of assignment and averaging.

    Returns:
        (N,) cluster numbers from 0.
    """
    import faiss

    order = np.argsort(points.view(np.dtype((np.void, points.shape[1] * 4))).ravel(), kind="stable")
    ordered = points[order]
    run = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
        gpu=bool(getattr(faiss, "get_num_gpus", int)()),
    )
    run.train(ordered)
    _, nearest = run.index.search(ordered, 1)
    assigned = np.empty(len(points), np.int64)
    assigned[order] = nearest[:, 0]
    return assigned


def clustering_values(
    metrics: dict[str, Metric], points: NDArray[np.float32], labels: Labels, *, seed: int
) -> dict[str, float]:
    """Metrics of one k-means clustering into as many clusters as there are classes.

    Args:
        metrics: "nmi", "ami" and "f1", by the names to give them.
        points: (N, D), of unit length for "cosine".
        labels: (N,) class ids.
        seed: of the k-means.
    """
    assigned = kmeans(points, len(np.unique(labels)), seed=seed)
    return {name: compared(metric.kind, labels, assigned) for name, metric in metrics.items()}


def compared(kind: str, labels: Labels, assigned: Labels) -> float:
    """How well clusters agree with classes.

    Args:
        kind: "nmi", "ami" (both normalised by the arithmetic mean of the entropies) or "f1" (over pairs).
        labels: (N,) class ids.
        assigned: (N,) cluster numbers.

    >>> compared("f1", np.array([0, 0, 1, 1]), np.array([5, 5, 5, 7]))
    0.4
    """
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    if kind == "f1":
        return pair_f1(labels, assigned)
    measure = normalized_mutual_info_score if kind == "nmi" else adjusted_mutual_info_score
    return float(measure(labels, assigned, average_method="arithmetic"))


def pair_f1(labels: Labels, assigned: Labels) -> float:
    """F1 over pairs: 2 TP / (same-class pairs + same-cluster pairs), TP the pairs that are both; 0 without any.

    Manning, Raghavan and Schuetze, Introduction to Information Retrieval, 2008, section 16.3.

    Args:
        labels: (N,) class ids.
        assigned: (N,) cluster numbers.
    """
    both = np.unique(np.stack([labels, assigned]), axis=1, return_counts=True)[1]
    true, same_class, same_cluster = (
        _pairs(counts)
        for counts in (both, np.unique(labels, return_counts=True)[1], np.unique(assigned, return_counts=True)[1])
    )
    return 2 * true / (same_class + same_cluster) if same_class + same_cluster else 0.0


def _pairs(counts: Labels) -> int:
    return int((counts * (counts - 1) // 2).sum())
