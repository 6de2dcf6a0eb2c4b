"""Exemplars: the few images of a class that stand for it once the others are gone."""

import numpy as np
from numpy.typing import NDArray


def herding_order(embeddings: NDArray[np.floating], size: int) -> NDArray[np.int64]:
    r"""Choose exemplars whose running mean stays as close to the class mean as it can.

    With :math:`\mu` the mean of the embeddings, the k-th choice is, among those not chosen yet,

    .. math:: \arg\min_i \Big\lVert \mu - \frac1k \Big( z_i + \sum_{j < k} z_{c_j} \Big) \Big\rVert

    and of equals the first. So the first m of more are the choice of m: a memory shrinks by cutting its end off.
    Rebuffi et al. 2017, https://arxiv.org/abs/1611.07725 (iCaRL), algorithm 4.

    Args:
        embeddings: (N, D) of one class, mostly of unit length.
        size: how many to choose, at least 1; no more than N are.

    Returns:
        (min(size, N),) positions, in the order of choice.

    Raises:
        ValueError: for a size below 1, or what is not (N, D).

    >>> herding_order(np.array([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]]), 2)
    array([2, 0])
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"embeddings must be (N, D) of at least one image, got {embeddings.shape}")
    vectors = embeddings.astype(np.float64)
    mean, total = vectors.mean(axis=0), np.zeros(vectors.shape[1])
    left = np.ones(len(vectors), np.bool_)
    chosen = np.empty(min(size, len(vectors)), np.int64)
    for place in range(len(chosen)):
        distances = np.linalg.norm(mean - (vectors + total) / (place + 1), axis=1)
        chosen[place] = np.where(left, distances, np.inf).argmin()
        left[chosen[place]] = False
        total += vectors[chosen[place]]
    return chosen
