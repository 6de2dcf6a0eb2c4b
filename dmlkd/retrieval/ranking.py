"""The ranks of relevant items, exactly: fast searches, and float64 where rounding leaves the order in doubt.

A float32 search orders near ties by rounding, which differs with the back end, the block and the row order. Here the
similarity of a pair is one fixed float64 sum (:mod:`dmlkd.retrieval.similarity`); it is computed only where float32
cannot tell a relevant item from an irrelevant one. Exactly equal similarities count against the query.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmlkd.retrieval.arrays import Distance
from dmlkd.retrieval.backends import Backend
from dmlkd.retrieval.metrics import Hits
from dmlkd.retrieval.relevance import EqualCodes, Integers, Relevance
from dmlkd.retrieval.similarity import lengths, pair_similarities, rounding

_FULL_BLOCK = 2**23  # float64 similarities held at a time when whole galleries are ranked
_SPARE = 6  # neighbours beyond those asked for, so that a near tie at the end seldom leaves a query in doubt
_FEW = 12  # thresholds that are quicker counted one by one than by sorting


@dataclass(frozen=True)
class Search:
    """Queries, a gallery, and what is relevant.

    Attributes:
        queries: (Q, D).
        gallery: (G, D).
        distance: between rows.
        backend: searches the gallery.
        relevance: what a query should find.
        left_out: items a query is not compared with, itself above all; None: nothing.
    """

    queries: NDArray[np.float32]
    gallery: NDArray[np.float32]
    distance: Distance
    backend: Backend
    relevance: Relevance
    left_out: EqualCodes | None

    def similarities(self, rows: Integers, ids: Integers) -> NDArray[np.float64]:
        """The similarities of pairs that decide their order."""
        return pair_similarities(self.queries, self.gallery, rows, ids, self.distance)


class Ranker:
    """Finds the hits of blocks of queries.

    Args:
        search: what to search.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._longest = float(lengths(search.gallery).max())
        self._most_left_out = 0 if search.left_out is None else int(search.left_out.counts().max())

    def hits(self, rows: Integers, k: int) -> Hits:
        """The hits among the k nearest of each query, at least.

        Args:
            rows: (b,) rows of the queries.
            k: how deep to look.
        """
        size = len(self._search.gallery)
        deep = k + self._most_left_out + _SPARE
        if not self._search.backend.exact:
            return self._searched(rows, k, min(deep, size))[0]
        found: list[Hits] = []
        for fetch in (deep, 4 * deep):
            if 4 * fetch > size and size > 1024:
                break
            some, doubtful = self._searched(rows, k, min(fetch, size))
            found.append(some)
            rows = rows[doubtful]
            if not len(rows):
                return _joined(found)
        step = max(1, _FULL_BLOCK // size)
        for start in range(0, len(rows), step):
            found.append(self._ranked_in_full(rows[start : start + step]))
        return _joined(found)

    def _rounding(self, queries: NDArray[np.float32], unit: float) -> NDArray[np.float64]:
        return rounding(lengths(queries), self._longest, queries.shape[1], self._search.distance, unit)

    def _searched(self, rows: Integers, k: int, fetch: int) -> tuple[Hits, NDArray[np.bool_]]:
        """The hits that a float32 search finds beyond doubt, and which queries it leaves in doubt."""
        search = self._search
        queries = search.queries[rows]
        near, ids = search.backend.top(queries, fetch)
        relevant = search.relevance.pairs(rows[:, None], ids)
        if search.left_out is not None:
            away = search.left_out.pairs(rows[:, None], ids)
            order = np.argsort(away, axis=1, kind="stable")
            near = np.take_along_axis(np.where(away, np.float32(-np.inf), near), order, axis=1)
            ids = np.take_along_axis(ids, order, axis=1)
            relevant = np.take_along_axis(relevant & ~away, order, axis=1)
        there = np.isfinite(near).sum(axis=1)
        with np.errstate(invalid="ignore"):
            apart = near[:, :-1] - near[:, 1:] > 2 * self._rounding(queries, 2.0**-24)[:, None]
        runs = np.zeros(near.shape, np.int64)  # items that float32 cannot tell apart have one number
        np.cumsum(apart, axis=1, out=runs[:, 1:])
        last_run = runs[np.arange(len(rows)), np.maximum(there, 1) - 1]
        doubtful = ((runs < last_run[:, None]).sum(axis=1) < k) & (fetch < len(search.gallery))
        doubtful &= search.backend.exact
        self._settle(rows, near, ids, relevant, runs)
        relevant[:, k:] = False
        relevant[doubtful] = False
        return _hits_of(rows, relevant), doubtful

    def _settle(
        self,
        rows: Integers,
        near: NDArray[np.float32],
        ids: Integers,
        relevant: NDArray[np.bool_],
        runs: Integers,
    ) -> None:
        """Put ``relevant`` in the true order, in place, where a run has both relevant and irrelevant items."""
        width = near.shape[1]
        some = np.flatnonzero((runs[:, -1] < width - 1) & relevant.any(axis=1))
        run = runs[some] + np.arange(len(some))[:, None] * width
        size = np.bincount(run.ravel(), minlength=len(some) * width)
        hits = np.bincount(run[relevant[some]], minlength=len(some) * width)
        mixed = ((hits > 0) & (hits < size))[run] & np.isfinite(near[some])
        some, mixed = some[mixed.any(axis=1)], mixed[mixed.any(axis=1)]
        if not len(some):
            return
        decided = near[some].astype(np.float64)
        at = np.nonzero(mixed)
        decided[at] = self._search.similarities(rows[some[at[0]]], ids[some[at[0]], at[1]])
        order = np.lexsort((relevant[some], -decided), axis=1)
        relevant[some] = np.take_along_axis(relevant[some], order, axis=1)

    def _ranked_in_full(self, rows: Integers) -> Hits:
        """The ranks of all relevant items of a few queries."""
        search = self._search
        queries = search.queries[rows]
        every = search.backend.every(queries)
        off = self._rounding(queries, 2.0**-53)
        found = []
        for row, similarities, margin in zip(rows, every, off, strict=True):
            if search.left_out is not None:
                similarities[search.left_out.of(int(row))] = -np.inf
            items = search.relevance.of(int(row))
            items = items[similarities[items] > -np.inf]
            ranks = self._ranks(int(row), similarities, items, float(margin))
            found.append(Hits(np.full(len(ranks), row), ranks, np.arange(1, len(ranks) + 1)))
        return _joined(found)

    def _ranks(self, row: int, similarities: NDArray[np.float64], items: Integers, margin: float) -> Integers:
        """The ranks of items among all, ascending; those as near as an irrelevant one come after it."""
        if not len(items):
            return items
        of_items = similarities[items]
        ahead = _at_least(similarities, np.concatenate([of_items - 2.5 * margin, of_items + 2.5 * margin]))
        least, most = ahead[len(items) :], ahead[: len(items)]
        crowded = most - least > 1
        if crowded.any():
            close = np.zeros(len(similarities), np.bool_)
            for low, high in _merged(np.sort(of_items[crowded]), 2.5 * margin):
                close |= (similarities >= low) & (similarities <= high)
            ids = np.flatnonzero(close)
            similarities[ids] = self._search.similarities(np.full(len(ids), row), ids)
            of_items = similarities[items]
            most = _at_least(similarities, of_items)
        order = np.argsort(-of_items, kind="stable")
        falling = -of_items[order]
        irrelevant = most[order] - np.searchsorted(falling, falling, side="right")
        return np.asarray(irrelevant + np.arange(1, len(items) + 1))


def _at_least(values: NDArray[np.float64], thresholds: NDArray[np.float64]) -> Integers:
    """How many values are at least each threshold."""
    if len(thresholds) <= _FEW:
        return np.array([np.count_nonzero(values >= t) for t in thresholds], np.int64)
    return (len(values) - np.searchsorted(np.sort(values), thresholds, side="left")).astype(np.int64)


def _merged(ascending: NDArray[np.float64], margin: float) -> list[tuple[float, float]]:
    """The union of the intervals around ascending values, as few intervals."""
    cuts = np.flatnonzero(np.diff(ascending) > 2 * margin) + 1
    return [(float(part[0]) - margin, float(part[-1]) + margin) for part in np.split(ascending, cuts)]


def _hits_of(rows: Integers, relevant: NDArray[np.bool_]) -> Hits:
    """Hits of an array of relevance by rank."""
    place, column = np.nonzero(relevant)
    each = relevant.sum(axis=1)
    nth = np.arange(1, len(place) + 1) - np.repeat(np.cumsum(each) - each, each)
    return Hits(rows[place], column + 1, nth)


def _joined(parts: list[Hits]) -> Hits:
    return parts[0] if len(parts) == 1 else Hits(*(np.concatenate(column) for column in zip(*parts, strict=True)))
