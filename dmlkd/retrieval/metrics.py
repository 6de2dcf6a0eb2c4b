"""Retrieval metrics of ranked relevance, with the definitions of docs/metrics.md."""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError, suggestion


class Metric(NamedTuple):
    """A parsed metric name: "recall@5" is ("recall", 5), "map@r" is ("map@r", 0)."""

    kind: str
    at: int = 0


_AT_K = ("recall", "precision")
_PLAIN = ("map@r", "r_precision", "nmi")


def parse(name: str) -> Metric:
    """Read a metric's name.

    Raises:
        UserError: for an unknown one, naming those there are.

    >>> parse("recall@4")
    Metric(kind='recall', at=4)
    """
    lower = str(name).lower()
    if lower in _PLAIN:
        return Metric(lower)
    match = re.fullmatch(r"(\w+)@([1-9]\d*)", lower)
    if match and match[1] in _AT_K:
        return Metric(match[1], int(match[2]))
    raise UserError(f"unknown metric {name!r}{suggestion(name, [*_PLAIN, *(f'{k}@1' for k in _AT_K)])}")


def depth(metrics: list[Metric], most_relevant: int) -> int:
    """How many neighbours of a query the metrics look at, when no query has more than ``most_relevant`` to find."""
    return max([m.at for m in metrics if m.at] + [most_relevant for m in metrics if m.kind in ("map@r", "r_precision")])


def score(metric: Metric, relevant: NDArray[np.bool_], to_find: NDArray[np.int64]) -> NDArray[np.float64]:
    """The metric for each query.

    Args:
        metric: one of ranked relevance.
        relevant: (Q, k) whether the i-th nearest has the query's label, nearest first.
        to_find: (Q,) R, how many gallery items have the query's label; at least 1.
    """
    if metric.kind == "recall":
        return np.asarray(relevant[:, : metric.at].any(axis=1), dtype=np.float64)
    if metric.kind == "precision":
        return np.asarray(relevant[:, : metric.at].sum(axis=1) / metric.at)
    ranks = np.arange(1, relevant.shape[1] + 1)
    within_r: NDArray[np.bool_] = relevant & (ranks <= to_find[:, None])
    if metric.kind == "r_precision":
        return np.asarray(within_r.sum(axis=1) / to_find)
    assert metric.kind == "map@r"
    precision = within_r.cumsum(axis=1) / ranks
    return np.asarray((precision * within_r).sum(axis=1) / to_find)
