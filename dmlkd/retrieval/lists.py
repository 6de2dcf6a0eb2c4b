"""Ranked lists of neighbours: candidates for re-ranking, and the scores of lists."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.arrays import class_ids, rows32
from dmlkd.retrieval.backends import FaissSearch
from dmlkd.retrieval.metrics import Hits, depths, parse, score
from dmlkd.retrieval.relevance import EqualCodes, relevant_and_left_out
from dmlkd.retrieval.scores import Scores, mean

_ROWS = 4096  # queries searched at a time


class Ranking(NamedTuple):
    """The first neighbours of each query, best first.

    Attributes:
        ids: (Q, depth) gallery rows, the query itself not among them; -1 where there are fewer.
        scores: (Q, depth) larger is nearer; -inf where there are fewer.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float64]


def evaluate_ranking(
    ranking: Ranking, labels: Any, gallery_labels: Any = None, *, metrics: Sequence[str] = ("recall@1", "recall@8")
) -> Scores:
    """Measure ranked lists as :func:`dmlkd.retrieval.evaluate` measures embeddings; ties count against the query.

    Args:
        ranking: the first neighbours of each query.
        labels: (Q,) integer class ids.
        gallery_labels: (G,) class ids of the gallery; None: the gallery is the other queries.
        metrics: names of metrics of ranked retrieval.

    Returns:
        Scores between 0 and 1 by metric name, also per query.

    Raises:
        UserError: if a metric looks deeper than the lists go, is none of ranked retrieval, or labels do not fit.

    >>> lists = Ranking(np.array([[1], [0], [0]]), np.ones((3, 1)))
    >>> evaluate_ranking(lists, np.array([4, 4, 5]), metrics=["recall@1"])
    Scores(recall@1=1.0000, queries=2, left_out=1)
    """
    parsed = {name: parse(name) for name in metrics}
    for name, metric in parsed.items():
        if not metric.ranked:
            raise UserError(f"{name} is no metric of ranked lists")
    classes = class_ids("labels", labels, len(ranking.ids))
    separate = gallery_labels is not None
    theirs = class_ids("gallery_labels", gallery_labels, len(gallery_labels)) if separate else classes
    if int(ranking.ids.max()) >= len(theirs):
        raise UserError(f"the lists name row {int(ranking.ids.max())} of a gallery of {len(theirs)} labels")
    relevance = EqualCodes(classes, theirs)
    to_find = relevance.counts()
    if not separate:
        own = np.arange(len(classes))
        to_find -= relevant_and_left_out(relevance, EqualCodes(own, own))
    rows = np.flatnonzero(to_find > 0)
    if not len(rows):
        raise UserError("none of the queries has anything to find: no two items share a label")
    others = len(theirs) - (not separate)
    need = int(depths(list(parsed.values()), to_find[rows], others).max())
    if need > ranking.ids.shape[1]:
        raise UserError(f"the metrics look at {need} neighbours, the lists have {ranking.ids.shape[1]}")
    hits = _hits(ranking, relevance)
    each = {name: score(metric, hits, to_find) for name, metric in parsed.items()}
    for values in each.values():
        values[to_find == 0] = np.nan
    means = {name: mean(values, None, "micro") for name, values in each.items()}
    return Scores(means, each, queries=len(rows), left_out=len(classes) - len(rows), classes=classes)


def _hits(ranking: Ranking, relevance: EqualCodes) -> Hits:
    relevant = relevance.pairs(np.arange(len(ranking.ids))[:, None], ranking.ids)
    order = np.lexsort((relevant, -ranking.scores), axis=1)
    relevant = np.take_along_axis(relevant, order, axis=1)
    query, column = np.nonzero(relevant)
    return Hits(query, column + 1, np.cumsum(relevant, axis=1, dtype=np.int64)[query, column])


def points_of(queries: Any, gallery: Any, numbers: dict[str, float]) -> tuple[NDArray[np.float32], int]:
    """Queries and gallery as unit rows, one after the other, and where the gallery begins (0 without one).

    Raises:
        UserError: as :func:`dmlkd.retrieval.evaluate` does, or for a number that is not above 0.
    """
    for name, number in numbers.items():
        if not number > 0:
            raise UserError(f"{name} must be above 0, got {number}")
    own = rows32("queries", queries, "cosine")
    if gallery is None:
        if len(own) < 2:
            raise UserError("a single embedding has no neighbours")
        return own, 0
    items = rows32("gallery", gallery, "cosine")
    if items.shape[1] != own.shape[1]:
        raise UserError(f"queries have {own.shape[1]} dimensions, the gallery has {items.shape[1]}")
    return np.concatenate([own, items]), len(own)


def candidates(points: NDArray[np.float32], first: int, depth: int) -> Ranking:
    """The nearest gallery rows of each query by cosine, itself left out by its row.

    Args:
        points: of :func:`points_of`.
        first: where the gallery begins; 0: each point is a query.
        depth: how many; cut to what there is.
    """
    items = points[first:]
    queries = points[: first or len(points)]
    depth = min(depth, len(items) - (first == 0))
    ids, near = nearest(queries, items, min(depth + 1, len(items)))
    if first == 0:
        own = ids == np.arange(len(ids))[:, None]
        own[~own.any(axis=1), -1] = True  # with duplicates a row may not be in its own list
        ids, near = ids[~own].reshape(len(ids), -1), near[~own].reshape(len(ids), -1)
    return Ranking(ids[:, :depth], near[:, :depth])


def nearest(
    queries: NDArray[np.float32], items: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and cosines of the k nearest of unit rows, in blocks.

    Args:
        queries: (Q, D).
        items: (G, D).
        k: at most G.
    """
    search = FaissSearch(items, "cosine")
    parts = [search.top(queries[s : s + _ROWS], k) for s in range(0, len(queries), _ROWS)]
    return np.concatenate([ids for _, ids in parts]), np.concatenate([near for near, _ in parts]).astype(np.float64)


def best_first(ids: NDArray[np.int64], scores: NDArray[np.float64]) -> Ranking:
    """Lists in the order of their scores."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return Ranking(np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1))
