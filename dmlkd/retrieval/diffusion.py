"""Ranking by diffusion on a neighbour graph."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.lists import Ranking, best_first, candidates, points_of

_NUMBERS = 2**22  # float64 scores held at a time
_STEPS = 200  # of conjugate gradients at most


def diffusion(
    queries: Any, gallery: Any = None, *, k: int = 50, power: float = 3.0, alpha: float = 0.99, depth: int = 100
) -> Ranking:
    """Rank by diffusion on the gallery's mutual neighbour graph (Iscen et al. 2017, https://arxiv.org/abs/1611.05113).

    The scores f solve (I - alpha S) f = y, where S is the degree-normalised affinity, cosine to a power between mutual
    neighbours, and y the same affinity of the query to its k nearest.

    Args:
        queries: (Q, D) NumPy array or torch tensor.
        gallery: (G, D); None: the other queries.
        k: neighbours in the graph, and of a query.
        power: of the cosine; what is negative counts as 0.
        alpha: how far to diffuse, at least 0 and below 1.
        depth: how many neighbours to return.

    Returns:
        The neighbours with the highest scores.

    Raises:
        UserError: as :func:`dmlkd.retrieval.evaluate` does for embeddings, or for a number out of range.

    >>> z = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> diffusion(z, k=1, depth=1).ids[:, 0].tolist()
    [1, 0, 3, 2]
    """
    if not 0 <= alpha < 1:
        raise UserError(f"alpha must be at least 0 and below 1, got {alpha}")
    points, first = points_of(queries, gallery, {"k": k, "power": power, "depth": depth})
    items = points[first:]
    affinity = _affinity(items, k, power)
    starts = candidates(points, first, k)
    depth = min(depth, len(items) - (first == 0))
    parts = []
    step = max(1, _NUMBERS // len(items))
    for start in range(0, len(starts.ids), step):
        near = starts.ids[start : start + step]
        sources = np.zeros((len(items), len(near)))
        weights = np.maximum(starts.scores[start : start + step], 0) ** power
        sources[near, np.arange(len(near))[:, None]] = weights
        found = _solved(affinity, alpha, sources).T
        if first == 0:
            found[np.arange(len(near)), np.arange(start, start + len(near))] = -np.inf
        best = np.argpartition(-found, depth - 1, axis=1)[:, :depth]
        parts.append(best_first(best, np.take_along_axis(found, best, axis=1)))
    return Ranking(np.concatenate([part.ids for part in parts]), np.concatenate([part.scores for part in parts]))


def _affinity(items: NDArray[np.float32], k: int, power: float) -> Any:
    """The degree-normalised affinity of mutual neighbours, (G, G) sparse."""
    from scipy.sparse import csr_matrix, diags

    if len(items) < 2:
        return csr_matrix((len(items), len(items)))
    near = candidates(items, 0, k)
    rows = np.repeat(np.arange(len(items)), near.ids.shape[1])
    weights = np.maximum(near.scores, 0).ravel() ** power
    graph = csr_matrix((weights, (rows, near.ids.ravel())), shape=(len(items), len(items)))
    mutual = graph.minimum(graph.T).tocsr()
    degrees = np.asarray(mutual.sum(axis=1)).ravel()
    scale = diags(1 / np.sqrt(np.where(degrees > 0, degrees, 1)))
    return (scale @ mutual @ scale).tocsr()


def _solved(affinity: Any, alpha: float, right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve (I - alpha S) f = y by conjugate gradients, each column by itself, to 1e-10 of its length."""
    found = np.zeros_like(right)
    rest, direction = right.copy(), right.copy()
    left = (rest**2).sum(axis=0)
    enough = 1e-20 * left
    for _ in range(_STEPS):
        moved = direction - alpha * (affinity @ direction)
        curvature = (direction * moved).sum(axis=0)
        length = np.where(left > enough, left / np.where(curvature > 0, curvature, 1), 0)
        found += length * direction
        rest -= length * moved
        before, left = left, (rest**2).sum(axis=0)
        if (left <= enough).all():
            break
        direction = rest + np.where(before > 0, left / np.where(before > 0, before, 1), 0) * direction
    return found
