"""How embeddings lie in space: spectrum, class distances, alignment and uniformity, hubs."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.arrays import class_ids, rows32
from dmlkd.retrieval.backends import FaissSearch

_PAIRS = 2**22  # float64 similarities held at a time


class Structure(NamedTuple):
    """Measures of embeddings of unit length.

    Attributes:
        rho_spectrum: how far the singular values are from equal; 0 if all directions are used alike.
        intra: mean distance of two images of one class.
        inter: mean distance of two classes' mean embeddings.
        ratio: intra / inter; NaN if the class means are equal.
        alignment: mean squared distance of two images of one class.
        uniformity: log of the mean of exp(-2 squared distance) over all pairs; lower is more evenly spread.
        hubness: skewness of how often an image is among the k nearest of others; near 0 without hubs.
    """

    rho_spectrum: float
    intra: float
    inter: float
    ratio: float
    alignment: float
    uniformity: float
    hubness: float


def structure(embeddings: Any, labels: Any, *, neighbours: int = 10) -> Structure:
    """Measure how unit embeddings lie in space, in memory that does not grow with the square of their number.

    Args:
        embeddings: (N, D) NumPy array or torch tensor; rows are scaled to unit length.
        labels: (N,) integer class ids; at least two classes, one of them with two images.
        neighbours: k of the hubness, at least 1 and less than N.

    Returns:
        Each measure by its field.

    Raises:
        UserError: as :func:`dmlkd.retrieval.evaluate` does, for a number out of range, or too few classes or images.

    >>> z = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> round(structure(z, np.array([0, 0, 1, 1]), neighbours=1).ratio, 3)
    0.074
    """
    z = rows32("embeddings", embeddings, "cosine")
    y = class_ids("labels", labels, len(z))
    sizes = np.unique(y, return_counts=True)[1]
    if len(sizes) < 2 or sizes.max() < 2:
        raise UserError("the structure needs at least two classes, one of them with two images")
    if not 1 <= neighbours < len(z):
        raise UserError(f"neighbours must be at least 1 and less than the {len(z)} embeddings, got {neighbours}")
    intra, alignment = class_distances(z, y)
    inter = centre_distance(z, y)
    ratio = intra / inter if inter > 0 else float("nan")
    return Structure(rho_spectrum(z), intra, inter, ratio, alignment, uniformity(z), hubness(z, neighbours))


def rho_spectrum(z: NDArray[np.float32]) -> float:
    """The divergence KL(uniform || singular values scaled to sum 1) (https://arxiv.org/abs/2002.08473).

    Infinite if fewer directions are used than there are dimensions.

    Args:
        z: (N, D).
    """
    triangle = np.zeros((0, z.shape[1]))
    for start in range(0, len(z), 8192):  # the triangle of a QR has the singular values of all rows so far
        stacked = np.vstack([triangle, z[start : start + 8192].astype(np.float64)])
        triangle = np.asarray(np.linalg.qr(stacked, mode="r"))
    values = np.linalg.svd(triangle, compute_uv=False)
    values = values[values > values.max() * len(values) * np.finfo(np.float32).eps]
    if len(values) < z.shape[1]:
        return float("inf")
    share = values / values.sum()
    return float(-np.log(len(share)) - np.log(share).mean())


def class_distances(z: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[float, float]:
    """Mean distance, and mean squared distance (https://arxiv.org/abs/2005.10242), of two images of one class.

    Args:
        z: (N, D) of unit length.
        y: (N,) class ids.
    """
    distance = squared = pairs = 0.0
    for rows in np.split(np.argsort(y, kind="stable"), np.cumsum(np.unique(y, return_counts=True)[1])[:-1]):
        own = z[rows].astype(np.float64)
        step = max(1, _PAIRS // len(rows))
        for start in range(0, len(rows), step):
            apart = _squared_distances(own[start : start + step], own)
            apart = apart[np.arange(len(rows))[None, :] > np.arange(start, start + len(apart))[:, None]]
            distance += float(np.sqrt(apart).sum())
            squared += float(apart.sum())
            pairs += len(apart)
    return distance / pairs, squared / pairs


def centre_distance(z: NDArray[np.float32], y: NDArray[np.int64]) -> float:
    """Mean distance of the mean embeddings of two classes (https://arxiv.org/abs/2002.08473).

    Args:
        z: (N, D).
        y: (N,) class ids; at least two classes.
    """
    order = np.argsort(y, kind="stable")
    sizes = np.unique(y, return_counts=True)[1]
    ends = np.cumsum(sizes)
    centres = np.stack([z[order[e - s : e]].mean(axis=0, dtype=np.float64) for s, e in zip(sizes, ends, strict=True)])
    step = max(1, _PAIRS // len(centres))
    parts = [_squared_distances(centres[s : s + step], centres) for s in range(0, len(centres), step)]
    return float(sum(np.sqrt(part).sum() for part in parts) / (len(centres) * (len(centres) - 1)))


def uniformity(z: NDArray[np.float32]) -> float:
    """log of the mean over all pairs of exp(-2 |x - y|^2) (https://arxiv.org/abs/2005.10242).

    Args:
        z: (N, D) of unit length, N at least 2.
    """
    total = 0.0
    step = max(1, _PAIRS // len(z))
    search = FaissSearch(z, "euclidean")
    for start in range(0, len(z), step):
        similarities = search.every(z[start : start + step])
        np.minimum(similarities, 0, out=similarities)
        own = np.arange(len(similarities))
        similarities *= 2
        np.exp(similarities, out=similarities)
        similarities[own, start + own] = 0
        total += float(similarities.sum())
    return float(np.log(total / (len(z) * (len(z) - 1))))


def hubness(z: NDArray[np.float32], k: int) -> float:
    """Skewness of N_k, how often each image is among the k nearest of others (Radovanovic et al., JMLR 11, 2010).

    Args:
        z: (N, D) of unit length.
        k: less than N; which of equally near ones count among the k nearest is up to FAISS.
    """
    search = FaissSearch(z, "cosine")
    occurrences = np.zeros(len(z), np.int64)
    for start in range(0, len(z), 4096):
        rows = np.arange(start, min(start + 4096, len(z)))
        _, ids = search.top(z[rows], k + 1)
        own = ids == rows[:, None]
        own[~own.any(axis=1), -1] = True  # with duplicates a row may not be in its own list
        occurrences += np.bincount(ids[~own], minlength=len(z))
    spread = occurrences - occurrences.mean()
    deviation = float(np.sqrt((spread**2).mean()))
    return float((spread**3).mean() / deviation**3) if deviation else 0.0


def _squared_distances(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    products = left @ right.T
    apart: NDArray[np.float64] = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * products
    apart[apart < 1e-13] = 0  # what is left of equal rows
    return apart
