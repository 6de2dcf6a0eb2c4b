"""Intervals of means over queries whose results depend on each other within a class."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError

_DRAWS = 2**22  # drawn classes held at a time


def bootstrap_interval(
    values: NDArray[np.float64],
    clusters: NDArray[np.int64],
    *,
    average: Literal["micro", "macro"] = "micro",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """A percentile interval of the mean, from resampling whole classes with replacement.

    Queries of one class are looked for among the same items, so they are no independent evidence: the class is what is
    drawn (the cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).

    Args:
        values: (Q,) one a query; NaN where there is none.
        clusters: (Q,) class ids.
        average: "micro", the mean over queries, or "macro", the mean of the classes' means.
        level: the share of resampled means inside, between 0 and 1.
        resamples: how many are drawn, at least 1.
        seed: of the draws.

    Returns:
        Its lower and upper end.

    Raises:
        UserError: for a number out of range, or if no value is there.

    >>> low, high = bootstrap_interval(np.array([1.0, 1, 0, 1, 0, 0]), np.array([0, 0, 1, 1, 2, 2]))
    >>> low < 0.5 < high
    True
    """
    if not 0 < level < 1:
        raise UserError(f"level must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise UserError(f"resamples must be at least 1, got {resamples}")
    there = ~np.isnan(values)
    if not there.any():
        raise UserError("no query has a value, so there is no mean to give an interval of")
    known, place = np.unique(clusters[there], return_inverse=True)
    sums: NDArray[np.float64] = np.bincount(place, weights=values[there]).astype(np.float64)
    sizes = np.bincount(place).astype(np.float64)
    if average == "macro":
        sums /= sizes
        sizes[:] = 1
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _DRAWS // len(known))
    for start in range(0, resamples, step):
        drawn = rng.integers(len(known), size=(min(step, resamples - start), len(known)))
        means[start : start + step] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
