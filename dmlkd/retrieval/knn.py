"""Exact nearest neighbours by cosine: FAISS finds the candidates, float64 decides their order.

A float32 search orders near ties by rounding, which differs with the back end, the block and the row order. Here the
similarity of a pair is one fixed float64 sum, so that equal embeddings are equally far from everything, and a query
whose candidates rounding leaves in doubt is searched in full.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SPARE = 16  # candidates beyond k, so that rounding seldom leaves the k-th in doubt


class Neighbours(NamedTuple):
    """The candidates of a block of queries: the k nearest, and whatever is exactly as near as the k-th.

    Attributes:
        queries: (b,) rows of the block's queries.
        ids: (b, m) gallery rows in no particular order; -1 where a query has fewer than m candidates.
        similarities: (b, m) float64; -inf where ``ids`` is -1.
    """

    queries: NDArray[np.int64]
    ids: NDArray[np.int64]
    similarities: NDArray[np.float64]


def nearest(
    queries: NDArray[np.float64], gallery: NDArray[np.float64], k: int, *, exclude_self: bool, block: int
) -> Iterator[Neighbours]:
    """Yield the nearest gallery rows of each query, block by block.

    Args:
        queries: (Q, D) rows of unit length.
        gallery: (G, D) rows of unit length.
        k: how many neighbours the caller will look at; at most what there are.
        exclude_self: the gallery is the queries; leave each out of its own list, by row number.
        block: queries at a time.
    """
    import faiss

    exact32 = gallery.astype(np.float32)
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(exact32)
    others = len(gallery) - exclude_self
    k = min(k, others)
    fetch = min(k + exclude_self + _SPARE, len(gallery))
    # |float32 dot product - exact one| of unit vectors is below this, in whatever order the sum is taken.
    error = (gallery.shape[1] + 4) * 2.0**-24
    for start in range(0, len(queries), block):
        rows = np.arange(start, min(start + block, len(queries)))
        found, ids = index.search(queries[rows].astype(np.float32), fetch)
        similarities = _similarities(queries[rows], gallery, ids)
        if exclude_self:
            own = ids == rows[:, None]
            ids[own], similarities[own] = -1, -np.inf
        kth = np.partition(similarities, -k, axis=1)[:, -k]
        doubtful = (kth <= found[:, -1] + error) & (fetch < len(gallery))
        full = {
            int(row): _search_in_full(queries[rows[row]], gallery, exact32, k, rows[row] if exclude_self else -1, error)
            for row in np.flatnonzero(doubtful)
        }
        yield Neighbours(rows, *_joined(ids, similarities, full))


def _similarities(
    queries: NDArray[np.float64], gallery: NDArray[np.float64], ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The exact similarity of each query to each of its candidates: a sum over D whose order is always the same."""
    out = np.empty(ids.shape)
    rows = max(1, 2**24 // (ids.shape[1] * gallery.shape[1]))
    for start in range(0, len(ids), rows):
        part = slice(start, start + rows)
        out[part] = (queries[part, None, :] * gallery[ids[part]]).sum(axis=2)
    return out


def _search_in_full(
    query: NDArray[np.float64],
    gallery: NDArray[np.float64],
    exact32: NDArray[np.float32],
    k: int,
    own: int,
    error: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rough = exact32 @ query.astype(np.float32)
    if own >= 0:
        rough[own] = -np.inf
    ids = np.flatnonzero(rough >= np.partition(rough, -k)[-k] - 2 * error)
    similarities = _similarities(np.broadcast_to(query, (len(ids), len(query))), gallery, ids[:, None])[:, 0]
    keep = similarities >= np.partition(similarities, -k)[-k]
    return ids[keep], similarities[keep]


def _joined(
    ids: NDArray[np.int64],
    similarities: NDArray[np.float64],
    full: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Put the full searches' results in their rows, widening the arrays to the longest."""
    width = max([ids.shape[1], *(len(found) for found, _ in full.values())])
    padding = ((0, 0), (0, width - ids.shape[1]))
    ids = np.pad(ids, padding, constant_values=-1)
    similarities = np.pad(similarities, padding, constant_values=-np.inf)
    for row, (found, near) in full.items():
        ids[row], similarities[row] = -1, -np.inf
        ids[row, : len(found)], similarities[row, : len(found)] = found, near
    return ids, similarities
