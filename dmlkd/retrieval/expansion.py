"""Query expansion and database augmentation: embeddings moved towards their neighbours."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.lists import candidates, points_of

_ROWS = 4096  # embeddings moved at a time


def expand_queries(queries: Any, gallery: Any = None, *, k: int = 10, alpha: float = 3.0) -> NDArray[np.float32]:
    """alpha-weighted query expansion (Radenovic et al. 2018, https://arxiv.org/abs/1711.02512).

    Each query becomes q + sum over its k nearest of max(cosine, 0)^alpha x, scaled to unit length. Measure the result
    with ``evaluate(expanded, labels, gallery=…)``; where queries and gallery are one set, with ``query_ids`` and
    ``gallery_ids`` so that the image itself is left out.

    Args:
        queries: (Q, D) NumPy array or torch tensor.
        gallery: (G, D); None: the other queries.
        k: how many neighbours are added.
        alpha: power of their cosine; 0: the plain average query expansion.

    Returns:
        (Q, D) unit rows.

    Raises:
        UserError: as :func:`dmlkd.retrieval.evaluate` does for embeddings, or for a number out of range.

    >>> expand_queries(np.eye(2)[:1], np.array([[1.0, 1.0]]), k=1, alpha=0).round(2)
    array([[0.92, 0.38]], dtype=float32)
    """
    if not alpha >= 0:
        raise UserError(f"alpha must be at least 0, got {alpha}")
    points, first = points_of(queries, gallery, {"k": k})
    near = candidates(points, first, k)
    items = points[first:]
    out = np.empty((len(near.ids), points.shape[1]), np.float32)
    for start in range(0, len(out), _ROWS):
        rows = slice(start, start + _ROWS)
        weights = np.maximum(near.scores[rows], 0) ** alpha
        moved = points[start : start + len(weights)].astype(np.float64)
        for column in range(weights.shape[1]):
            moved += weights[:, column, None] * items[near.ids[rows, column]]
        out[rows] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return out


def augment_database(gallery: Any, *, k: int = 10, alpha: float = 3.0) -> NDArray[np.float32]:
    """Database-side feature augmentation: each gallery item expanded by its own neighbours.

    Gordo et al. 2017, section 4 (https://arxiv.org/abs/1610.07940), with the cosine weights of query expansion.

    Args:
        gallery: (G, D) NumPy array or torch tensor.
        k: how many neighbours are added.
        alpha: power of their cosine.

    Returns:
        (G, D) unit rows.

    Raises:
        UserError: as :func:`expand_queries`.

    >>> augment_database(np.eye(2), k=1, alpha=1).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return expand_queries(gallery, k=k, alpha=alpha)
