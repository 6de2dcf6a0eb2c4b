"""Clustering measured against the labels."""

import numpy as np
from numpy.typing import NDArray


def nmi(embeddings: NDArray[np.float64], labels: NDArray[np.int64], *, seed: int) -> float:
    """Normalised mutual information (arithmetic) of a FAISS k-means clustering and the labels.

    k is the number of classes, 20 iterations, all points.

    Args:
        embeddings: (N, D) rows of unit length.
        labels: (N,) class ids.
        seed: of the initial centroids.
    """
    import faiss
    from sklearn.metrics import normalized_mutual_info_score

    points = embeddings.astype(np.float32)
    kmeans = faiss.Kmeans(
        points.shape[1],
        len(np.unique(labels)),
        niter=20,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    kmeans.train(points)
    _, assigned = kmeans.index.search(points, 1)
    return float(normalized_mutual_info_score(labels, assigned[:, 0], average_method="arithmetic"))
