"""Which gallery items a query should find, and which it must not be compared with."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError

Integers = NDArray[np.int64]
RelevanceFunction = Callable[[Integers, Integers], NDArray[np.bool_]]

_PAIRS = 2**22  # judged at a time


class Relevance(Protocol):
    """Says whether gallery items are relevant to queries."""

    def pairs(self, rows: Integers, ids: Integers) -> NDArray[np.bool_]:
        """Whether each item is relevant to its query; the two are broadcast, and an id of -1 is not relevant."""

    def of(self, row: int) -> Integers:
        """The items that are relevant to one query."""

    def counts(self) -> Integers:
        """(Q,) how many items are relevant to each query."""


class EqualCodes:
    """Relevant is what has the query's code: its class, or its identity for what must be left out.

    Args:
        queries: (Q,) codes.
        items: (G,) codes.
    """

    def __init__(self, queries: Integers, items: Integers) -> None:
        self.queries = queries
        self.items = items
        self._order = np.argsort(items, kind="stable")
        in_order = items[self._order]
        self._first = np.searchsorted(in_order, queries, side="left")
        self._last = np.searchsorted(in_order, queries, side="right")

    def pairs(self, rows: Integers, ids: Integers) -> NDArray[np.bool_]:
        """Whether codes are equal."""
        equal: NDArray[np.bool_] = self.items[ids] == self.queries[rows]
        if ids.size and ids.min() < 0:
            equal &= ids >= 0
        return equal

    def of(self, row: int) -> Integers:
        """The items with the code of a query."""
        return np.asarray(self._order[self._first[row] : self._last[row]])

    def listed(self, rows: Integers) -> tuple[Integers, Integers]:
        """Every (row, item) with equal codes among the given queries."""
        counts = (self._last - self._first)[rows]
        before = np.cumsum(counts) - counts
        place = np.repeat(self._first[rows] - before, counts) + np.arange(int(counts.sum()))
        return np.repeat(rows, counts), self._order[place]

    def counts(self) -> Integers:
        """How many items have the code of each query."""
        return (self._last - self._first).astype(np.int64)


class SharedLabels:
    """Relevant is what shares at least one label with the query.

    Args:
        queries: Q collections of integer labels, or a boolean (Q, C) array.
        items: the same for the gallery.

    Raises:
        UserError: if they are neither, or the two arrays differ in C.
    """

    def __init__(self, queries: Any, items: Any) -> None:
        from scipy.sparse import csr_matrix

        ragged = [_label_lists(part) for part in (queries, items)]
        known = np.unique(np.concatenate([values for values, _ in ragged]))
        self._queries, self._items = (
            csr_matrix(
                (np.ones(len(values), np.int32), np.searchsorted(known, values), starts),
                shape=(len(starts) - 1, max(1, len(known))),
            )
            for values, starts in ragged
        )
        self._transposed = self._items.T.tocsr()

    def pairs(self, rows: Integers, ids: Integers) -> NDArray[np.bool_]:
        """Whether label sets meet."""
        rows, ids = np.broadcast_arrays(rows, ids)
        shape, rows, ids = rows.shape, rows.ravel(), ids.ravel()
        out = np.empty(len(rows), np.bool_)
        for start in range(0, len(rows), _PAIRS // 4):
            part = slice(start, start + _PAIRS // 4)
            shared = self._queries[rows[part]].multiply(self._items[ids[part]]).sum(axis=1)
            out[part] = np.asarray(shared).ravel() > 0
        return (out & (ids >= 0)).reshape(shape)

    def of(self, row: int) -> Integers:
        """The items that share a label with a query."""
        return np.sort((self._queries[[row]] @ self._transposed).indices).astype(np.int64)

    def counts(self) -> Integers:
        """How many items share a label with each query."""
        step = max(1, _PAIRS // self._items.shape[0])
        parts = [self._queries[s : s + step] @ self._transposed for s in range(0, self._queries.shape[0], step)]
        return np.concatenate([part.getnnz(axis=1) for part in parts]).astype(np.int64)


class JudgedBy:
    """Relevant is what a function says.

    Args:
        function: (P,) query rows and (P,) gallery rows in, (P,) booleans out.
        queries: Q.
        items: G.
    """

    def __init__(self, function: RelevanceFunction, queries: int, items: int) -> None:
        self._function = function
        self._size = (queries, items)

    def pairs(self, rows: Integers, ids: Integers) -> NDArray[np.bool_]:
        """What the function says, ids of -1 aside.

        Raises:
            UserError: if it does not give one boolean a pair.
        """
        rows, ids = np.broadcast_arrays(rows, ids)
        flat, there = ids.ravel(), ids.ravel() >= 0
        said = np.asarray(self._function(rows.ravel()[there], flat[there]))
        if said.shape != (int(there.sum()),) or said.dtype != np.bool_:
            raise UserError(
                f"relevant must return one boolean for each of the {int(there.sum())} pairs it is given, "
                f"got {said.dtype} of shape {said.shape}"
            )
        out = np.zeros(len(flat), np.bool_)
        out[there] = said
        return out.reshape(ids.shape)

    def of(self, row: int) -> Integers:
        """The items that the function says are relevant to a query."""
        ids = np.arange(self._size[1])
        return np.flatnonzero(self.pairs(np.full(len(ids), row), ids))

    def counts(self) -> Integers:
        """How many items the function says are relevant to each query."""
        queries, items = self._size
        step = max(1, _PAIRS // items)
        blocks = (np.arange(start, min(start + step, queries)) for start in range(0, queries, step))
        ids = np.arange(items)[None, :]
        return np.concatenate([self.pairs(rows[:, None], ids).sum(axis=1) for rows in blocks]).astype(np.int64)


def is_multi_label(labels: Any) -> bool:
    """Whether labels are collections, or a boolean (N, C) array, rather than one integer a row."""
    if hasattr(labels, "shape"):
        return len(labels.shape) == 2
    return len(labels) > 0 and not isinstance(labels[0], str) and hasattr(labels[0], "__len__")


def relevant_and_left_out(relevance: Relevance, left_out: EqualCodes) -> Integers:
    """(Q,) how many of the items that are relevant to a query it must not be compared with."""
    counts = left_out.counts()
    total = np.zeros(len(counts), np.int64)
    step = max(1, _PAIRS // max(1, int(counts.max(initial=0))))
    for start in range(0, len(counts), step):
        rows = np.arange(start, min(start + step, len(counts)))
        of_row, ids = left_out.listed(rows)
        total[rows] = np.bincount(of_row[relevance.pairs(of_row, ids)] - start, minlength=len(rows))
    return total


def _label_lists(labels: Any) -> tuple[Integers, Integers]:
    """All labels of all rows one after the other, and where each row's begin."""
    if hasattr(labels, "shape"):
        array = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
        if array.ndim != 2 or array.dtype != np.bool_:
            raise UserError(f"labels of several classes must be boolean (N, C), got {array.dtype} of {array.shape}")
        rows, values = np.nonzero(array)
        return values.astype(np.int64), np.searchsorted(rows, np.arange(len(array) + 1)).astype(np.int64)
    sets = [np.unique(np.asarray(list(entry))) for entry in labels]
    for row, entry in enumerate(sets):
        if len(entry) and entry.dtype.kind not in "iu":
            raise UserError(f"the labels of row {row} must be integers, got {entry.dtype}")
    starts = np.concatenate([[0], np.cumsum([len(entry) for entry in sets])]).astype(np.int64)
    values = np.concatenate(sets).astype(np.int64) if len(sets) else np.empty(0, np.int64)
    return values, starts
