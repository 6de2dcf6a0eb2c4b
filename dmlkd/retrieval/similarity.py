"""The one similarity that decides an order, and how far a fast computation of it can be off."""

import numpy as np
from numpy.typing import NDArray

from dmlkd.retrieval.arrays import Distance

_NUMBERS = 2**21  # float64 numbers held at a time


def pair_similarities(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    rows: NDArray[np.int64],
    ids: NDArray[np.int64],
    distance: Distance,
) -> NDArray[np.float64]:
    """The similarity of pairs: a float64 sum over the dimensions whose order is always the same.

    The inner product, or minus the squared Euclidean distance. Equal rows give equal similarities to the last bit.

    Args:
        queries: (Q, D).
        items: (G, D).
        rows: (P,) rows of ``queries``.
        ids: (P,) rows of ``items``.
        distance: "cosine" and "inner" are the same here.

    Returns:
        (P,) similarities, larger is nearer.
    """
    out = np.empty(len(rows))
    step = max(1, _NUMBERS // queries.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        left = queries[rows[part]].astype(np.float64)
        right = items[ids[part]]
        if distance == "euclidean":
            left -= right
            left *= left
            out[part] = -left.sum(axis=1)
        else:
            left *= right
            out[part] = left.sum(axis=1)
    return out


def lengths(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The Euclidean length of each row, in float64 without a float64 copy of the rows."""
    out = np.empty(len(rows))
    step = max(1, _NUMBERS // rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step].astype(np.float64)
        part *= part
        out[start : start + step] = np.sqrt(part.sum(axis=1))
    return out


def rounding(
    query_lengths: NDArray[np.float64], longest: float, dimensions: int, distance: Distance, unit: float
) -> NDArray[np.float64]:
    """How far a computed similarity can be from the true one, whatever the order of its sum.

    A sum of D products with unit roundoff u is off by at most D u / (1 - D u) times the sum of their absolute values
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), and that sum is at most |q| |x|.

    Args:
        query_lengths: (b,) lengths of the queries.
        longest: the largest length in the gallery.
        dimensions: D.
        distance: "euclidean" is taken to be computed as |q|^2 + |x|^2 - 2 q x.
        unit: u, 2^-24 for float32 and 2^-53 for float64.
    """
    scale = (query_lengths + longest) ** 2 if distance == "euclidean" else query_lengths * longest
    smallest = 1.2e-38 if unit > 2.0**-53 else 2.3e-308  # products below it may be lost altogether
    bound: NDArray[np.float64] = (dimensions + 8) * (unit * 1.01 * scale + smallest)
    return bound
