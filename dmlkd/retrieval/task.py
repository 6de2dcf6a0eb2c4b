"""From what a caller gives to a checked task: queries, a gallery, what is relevant and what is left out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.approximate import Index, IndexSearch
from dmlkd.retrieval.arrays import Distance, checked_distance, class_ids, codes, rows32
from dmlkd.retrieval.backends import Backend, make_backend
from dmlkd.retrieval.ranking import Search
from dmlkd.retrieval.relevance import (
    EqualCodes,
    JudgedBy,
    Relevance,
    RelevanceFunction,
    SharedLabels,
    is_multi_label,
    relevant_and_left_out,
)


@dataclass(frozen=True)
class Task:
    """Checked queries and gallery.

    Attributes:
        search: queries, gallery, back end, relevance.
        to_find: (Q,) R, how many items each query should find.
        classes: (Q,) class ids, if each query has one.
        separate: the gallery is a set of its own.
    """

    search: Search
    to_find: NDArray[np.int64]
    classes: NDArray[np.int64] | None
    separate: bool


def prepare(
    embeddings: Any,
    labels: Any,
    *,
    gallery: Any,
    gallery_labels: Any,
    distance: Distance,
    query_ids: Any,
    gallery_ids: Any,
    relevant: RelevanceFunction | None,
    backend: str,
    index: Index | str | None,
) -> Task:
    """Check what :func:`evaluate` was given.

    Raises:
        UserError: as :func:`evaluate` does.
    """
    checked_distance(distance)
    queries = rows32("embeddings", embeddings, distance)
    items = queries if gallery is None else rows32("gallery", gallery, distance)
    if items.shape[1] != queries.shape[1]:
        raise UserError(f"embeddings have {queries.shape[1]} dimensions, the gallery has {items.shape[1]}")
    sizes = len(queries), len(items)
    relevance, classes = _relevance(labels, gallery is not None, gallery_labels, relevant, sizes)
    left_out = _left_out(query_ids, gallery_ids, gallery is not None, sizes)
    to_find = relevance.counts()
    if left_out is not None:
        to_find -= relevant_and_left_out(relevance, left_out)
    if not (to_find > 0).any():
        raise UserError(f"none of the {len(queries)} queries has anything to find: no two items share a label")
    source: Backend
    if index is None:
        source = make_backend(backend, items, distance, embeddings if gallery is None else gallery)
    else:
        if backend == "torch":
            raise UserError("an approximate index is FAISS's: leave backend at 'auto' or 'faiss'")
        source = IndexSearch(Index(index) if isinstance(index, str) else index, items, distance)
    return Task(Search(queries, items, distance, source, relevance, left_out), to_find, classes, gallery is not None)


def _relevance(
    labels: Any, separate: bool, gallery_labels: Any, function: RelevanceFunction | None, sizes: tuple[int, int]
) -> tuple[Relevance, NDArray[np.int64] | None]:
    if function is not None:
        if labels is not None or gallery_labels is not None:
            raise UserError("give either labels or relevant, not both")
        return JudgedBy(function, *sizes), None
    if labels is None:
        raise UserError("labels are missing: give class ids, or a function as relevant")
    if separate != (gallery_labels is not None):
        raise UserError("gallery and gallery_labels must be given together")
    if is_multi_label(labels):
        theirs = labels if gallery_labels is None else gallery_labels
        for name, part, rows in (("labels", labels, sizes[0]), ("gallery_labels", theirs, sizes[1])):
            if len(part) != rows or not is_multi_label(part):
                raise UserError(f"{name} must be {rows} collections of class ids, one for each embedding")
        return SharedLabels(labels, theirs), None
    classes = class_ids("labels", labels, sizes[0])
    return EqualCodes(classes, class_ids("gallery_labels", gallery_labels, sizes[1]) if separate else classes), classes


def _left_out(query_ids: Any, gallery_ids: Any, separate: bool, sizes: tuple[int, int]) -> EqualCodes | None:
    if not separate:
        if gallery_ids is not None:
            raise UserError("gallery_ids without a gallery: give query_ids alone")
        own = (
            np.arange(sizes[0])
            if query_ids is None
            else codes("query_ids", query_ids, "query_ids", query_ids, sizes)[0]
        )
        return EqualCodes(own, own)
    if (query_ids is None) != (gallery_ids is None):
        raise UserError("query_ids and gallery_ids must be given together")
    return None if query_ids is None else EqualCodes(*codes("query_ids", query_ids, "gallery_ids", gallery_ids, sizes))
