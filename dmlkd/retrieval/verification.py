"""Verification: telling pairs of one class from pairs of two by a threshold on their similarity."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.metrics import Metric
from dmlkd.retrieval.ranking import Search
from dmlkd.retrieval.similarity import lengths

LEVELS = 2**20
"""Similarities are rounded to this many steps on either side of 0 before they are compared with a threshold."""

_PAIRS = 2**22  # float64 similarities held at a time


class PairCounts(NamedTuple):
    """How many pairs have each rounded similarity, least similar first.

    Attributes:
        genuine: pairs that match, by the relevance of the search.
        impostor: pairs that do not.
    """

    genuine: NDArray[np.int64]
    impostor: NDArray[np.int64]


def verification_values(metrics: dict[str, Metric], search: Search, *, separate: bool) -> dict[str, float]:
    """The area under the ROC, the equal error rate, and false-non-match rates at false-match rates, over all pairs.

    Args:
        metrics: "auroc", "eer" and "fnmr" with a rate, by the names to give them.
        search: whose pairs; those left out are not counted.
        separate: the gallery is a set of its own; else each pair is counted once.

    Raises:
        UserError: if there are no pairs that match, or none that do not.
    """
    counts = count_pairs(search, separate=separate)
    for what, part in (("match", counts.genuine), ("do not match", counts.impostor)):
        if not part.any():
            raise UserError(f"{next(iter(metrics))} needs pairs that {what}, and there are none")
    return {name: from_counts(metric, counts) for name, metric in metrics.items()}


def from_counts(metric: Metric, counts: PairCounts) -> float:
    """A verification metric. A pair is accepted if its similarity is at least the threshold.

    "auroc" is the probability that a genuine pair is more similar than an impostor pair, ties counting half. "eer" is
    the smallest rate that both error rates can be kept to. "fnmr" is the smallest false-non-match rate of the
    thresholds whose false-match rate is at most the one given.

    Args:
        metric: its kind and rate.
        counts: of all pairs.
    """
    genuine, impostor = int(counts.genuine.sum()), int(counts.impostor.sum())
    if metric.kind == "auroc":
        below = np.cumsum(counts.impostor) - counts.impostor
        share = (2 * below + counts.impostor) / (2 * impostor)
        return float((counts.genuine * share).sum() / genuine)
    rejected = np.concatenate([[0], np.cumsum(counts.genuine)])  # at the threshold of each step, and above all
    accepted = impostor - np.concatenate([[0], np.cumsum(counts.impostor)])
    fnmr, fmr = rejected / genuine, accepted / impostor
    if metric.kind == "eer":
        return float(np.maximum(fnmr, fmr).min())
    return float(fnmr[fmr <= metric.rate].min())


def count_pairs(search: Search, *, separate: bool) -> PairCounts:
    """Count all pairs by rounded similarity, in blocks.

    Similarities are scaled to -1 to 1 first: by the product of the largest lengths ("cosine": 1), or for "euclidean"
    the distance by their sum, and rounded to multiples of 1 / ``LEVELS``.
    """
    gallery, queries = search.gallery, search.queries
    longest = float(lengths(queries).max()), float(lengths(gallery).max())
    euclidean = search.distance == "euclidean"
    scale = 1.0 if search.distance == "cosine" else (sum(longest) if euclidean else longest[0] * longest[1]) or 1.0
    totals = [np.zeros(2 * LEVELS + 3, np.int64) for _ in range(2)]
    start = 0
    while start < len(queries):
        first = 0 if separate else start  # each pair once: with the items that come later
        rows = np.arange(start, min(start + max(1, _PAIRS // (len(gallery) - first)), len(queries)))
        start += len(rows)
        similarities = search.backend.every(queries[rows], first)
        if euclidean:
            similarities = -np.sqrt(np.maximum(-similarities, 0))
        rounded = np.rint(similarities * (LEVELS / scale)).astype(np.int32) + (LEVELS + 1)
        ids = np.arange(first, len(gallery))[None, :]
        genuine = search.relevance.pairs(rows[:, None], ids)
        counted = np.ones(genuine.shape, np.bool_) if separate else ids > rows[:, None]
        if search.left_out is not None:
            counted &= ~search.left_out.pairs(rows[:, None], ids)
        for total, chosen in zip(totals, (genuine & counted, ~genuine & counted), strict=True):
            total += np.bincount(rounded[chosen], minlength=len(total))
    return PairCounts(*totals)
