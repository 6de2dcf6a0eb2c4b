"""Retrieval metrics by name, and those of ranked relevance; docs/metrics.md has the definitions."""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError, suggestion

CLUSTERING = ("nmi", "ami", "f1")
"""Metrics of a clustering."""

VERIFICATION = ("auroc", "eer", "fnmr")
"""Metrics of all pairs."""

_AT_K = ("recall", "precision", "map", "cmc")
_PLAIN = ("map@r", "r_precision", "map", "mrr", "auroc", "eer", *CLUSTERING)
_EXAMPLES = (*_PLAIN, *(f"{kind}@1" for kind in _AT_K), "fnmr@fmr=0.01")


class Metric(NamedTuple):
    """A parsed metric name: "recall@5" is ("recall", 5), "map@r" is ("map@r", 0), "fnmr@fmr=0.01" ("fnmr", 0, 0.01)."""

    kind: str
    at: int = 0
    rate: float = 0.0

    @property
    def ranked(self) -> bool:
        """Whether it is a mean over queries of something that depends on ranks."""
        return self.kind not in CLUSTERING and self.kind not in VERIFICATION


class Hits(NamedTuple):
    """The relevant items that were found, by query and then by rank.

    Attributes:
        query: (H,) row of the query.
        rank: (H,) from 1; items exactly as near as the hit that are not relevant come before it.
        nth: (H,) how many hits of the query there are up to this one.
    """

    query: NDArray[np.int64]
    rank: NDArray[np.int64]
    nth: NDArray[np.int64]


def parse(name: str) -> Metric:
    """Read a metric's name.

    Raises:
        UserError: for an unknown one, naming those there are.

    >>> parse("recall@4").at
    4
    """
    lower = str(name).lower()
    if lower in _PLAIN:
        return Metric(lower)
    if match := re.fullmatch(r"(\w+)@([1-9]\d*)", lower):
        kind = "recall" if match[1] == "cmc" else match[1]
        if match[1] in _AT_K:
            return Metric(kind, int(match[2]))
    if match := re.fullmatch(r"fnmr@fmr=(\d*\.?\d+(?:e-?\d+)?)", lower):
        rate = float(match[1])
        if 0 <= rate <= 1:
            return Metric("fnmr", 0, rate)
        raise UserError(f"metric {name!r}: the false-match rate must lie between 0 and 1")
    raise UserError(f"unknown metric {name!r}{suggestion(name, _EXAMPLES)}")


def depths(metrics: list[Metric], to_find: NDArray[np.int64], gallery: int) -> NDArray[np.int64]:
    """How many neighbours of each query the metrics look at.

    Args:
        metrics: of ranked relevance.
        to_find: (Q,) R.
        gallery: how many items there are; "map" and "mrr" look at all.
    """
    fixed = max((gallery if m.kind in ("map", "mrr") and not m.at else m.at for m in metrics), default=0)
    by_class = any(m.kind in ("map@r", "r_precision") for m in metrics)
    need = np.maximum(to_find, fixed) if by_class else np.full(len(to_find), fixed)
    return np.minimum(need, gallery).astype(np.int64)


def score(metric: Metric, hits: Hits, to_find: NDArray[np.int64]) -> NDArray[np.float64]:
    """The metric for each query; a query without hits has 0.

    Args:
        metric: one of ranked relevance.
        hits: of every query, at least as deep as the metric looks.
        to_find: (Q,) R, how many gallery items are relevant; at least 1 wherever the value is to be used.
    """
    last: NDArray[np.int64] | int = to_find[hits.query] if metric.kind in ("map@r", "r_precision") else metric.at
    if (metric.kind == "map" and not metric.at) or metric.kind == "mrr":
        last = np.iinfo(np.int64).max
    counted = hits.rank <= last
    query, rank, nth = (part[counted] for part in hits)
    most = np.maximum(to_find, 1)
    if metric.kind in ("recall", "mrr"):
        weights, divisor = np.where(nth == 1, 1.0 if metric.kind == "recall" else 1 / rank, 0.0), np.ones(len(most))
    elif metric.kind in ("precision", "r_precision"):
        weights, divisor = np.ones(len(rank)), (most if metric.kind == "r_precision" else np.full(len(most), metric.at))
    else:
        weights, divisor = nth / rank, (np.minimum(most, metric.at) if metric.at else most)
    return np.asarray(np.bincount(query, weights=weights, minlength=len(most)) / divisor)
