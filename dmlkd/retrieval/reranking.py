"""k-reciprocal re-ranking."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.lists import Ranking, best_first, candidates, nearest, points_of
from dmlkd.retrieval.similarity import pair_similarities

_ROWS = 1024  # rows of sparse products at a time


def k_reciprocal(
    queries: Any, gallery: Any = None, *, k1: int = 20, k2: int = 6, weight: float = 0.3, depth: int = 100
) -> Ranking:
    """k-reciprocal re-ranking of each query's nearest neighbours (Zhong et al. 2017, https://arxiv.org/abs/1701.08398).

    The distance is (1 - weight) times the Jaccard distance of k-reciprocal neighbour sets, weighted by exp(-d), plus
    weight times d, the squared Euclidean distance of unit rows. Neighbours are taken among queries and gallery
    together.

    Args:
        queries: (Q, D) NumPy array or torch tensor.
        gallery: (G, D); None: the other queries.
        k1: size of the neighbour sets.
        k2: neighbours, the image itself among them, over which the sets are averaged.
        weight: of the original distance, between 0 and 1; 1 leaves the order as it is.
        depth: how many neighbours of each query are re-ranked.

    Returns:
        The re-ranked neighbours; the scores are minus the distance.

    Raises:
        UserError: as :func:`dmlkd.retrieval.evaluate` does for embeddings, or for a number out of range.

    >>> z = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> k_reciprocal(z, k1=1, k2=1, depth=1).ids[:, 0].tolist()
    [1, 0, 3, 2]
    """
    if not 0 <= weight <= 1:
        raise UserError(f"weight must lie between 0 and 1, got {weight}")
    points, first = points_of(queries, gallery, {"k1": k1, "k2": k2, "depth": depth})
    sets = _weighted_sets(points, min(k1, len(points) - 1), min(k2, len(points)))
    found = candidates(points, first, depth)
    jaccard = np.empty(found.ids.shape)
    dense = np.zeros(len(points))
    for row, ids in enumerate(found.ids):
        own, theirs = sets[[row]], sets[ids + first]
        dense[own.indices] = own.data
        place = np.repeat(np.arange(len(ids)), np.diff(theirs.indptr))
        shared = np.bincount(place, weights=np.minimum(theirs.data, dense[theirs.indices]), minlength=len(ids))
        jaccard[row] = 1 - shared / (2 - shared)  # the weights of each set sum to 1
        dense[own.indices] = 0
    return best_first(found.ids, -((1 - weight) * jaccard + weight * (2 - 2 * found.scores)))


def _weighted_sets(points: NDArray[np.float32], k1: int, k2: int) -> Any:
    """A sparse row of weights for each point: its expanded reciprocal set, averaged over its k2 nearest."""
    from scipy.sparse import csr_matrix, vstack

    ids, _ = nearest(points, points, max(k1 + 1, k2))
    size = len(points)

    def graph(k: int) -> Any:
        rows = np.repeat(np.arange(size), k)
        return csr_matrix((np.ones(len(rows), np.float64), (rows, ids[:, :k].ravel())), shape=(size, size))

    whole, half = (_mutual(graph(k)) for k in (k1 + 1, round(k1 / 2) + 1))
    half_sizes = np.asarray(half.sum(axis=1)).ravel()
    parts = []
    for start in range(0, size, _ROWS):
        own = whole[start : start + _ROWS]
        shared = (own @ half.T).multiply(own).tocsr()  # |half set of j and own set of i|, for j in i's own set
        shared.data = (shared.data >= 2 / 3 * half_sizes[shared.indices]).astype(np.float64)
        member = (own + shared @ half).tocoo()
        counts = member.data > 0
        rows, columns = member.row[counts] + start, member.col[counts]
        near = pair_similarities(points, points, rows.astype(np.int64), columns.astype(np.int64), "cosine")
        weights = np.exp(-(2 - 2 * near))
        weights /= np.bincount(rows - start, weights=weights, minlength=own.shape[0])[rows - start]
        parts.append(csr_matrix((weights, (rows - start, columns)), shape=own.shape))
    return (graph(k2) / k2 @ vstack(parts, format="csr")).tocsr()


def _mutual(graph: Any) -> Any:
    """Neighbours of each other; each point is its own, also where its duplicates crowd it out of its list."""
    from scipy.sparse import identity

    return graph.multiply(graph.T).maximum(identity(graph.shape[0], format="csr")).tocsr()
