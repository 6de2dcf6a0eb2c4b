"""Retrieval evaluation: every query against everything else, or against a gallery."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError, suggestion
from dmlkd.retrieval.arrays import Distance, checked_distance, class_ids, codes, rows32
from dmlkd.retrieval.backends import BackendName, make_backend
from dmlkd.retrieval.metrics import CLUSTERING, Hits, Metric, depths, parse, score
from dmlkd.retrieval.ranking import Ranker, Search
from dmlkd.retrieval.relevance import (
    EqualCodes,
    JudgedBy,
    Relevance,
    RelevanceFunction,
    SharedLabels,
    is_multi_label,
    relevant_and_left_out,
)
from dmlkd.retrieval.scores import Average, Scores, mean

DEFAULT_METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision", "nmi")
DEFAULT_BLOCK = 4096


def evaluate(
    embeddings: Any,
    labels: Any = None,
    *,
    gallery: Any = None,
    gallery_labels: Any = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    distance: Distance = "cosine",
    query_ids: Any = None,
    gallery_ids: Any = None,
    relevant: RelevanceFunction | None = None,
    average: Average = "micro",
    backend: BackendName = "auto",
    block: int = DEFAULT_BLOCK,
    per_query: bool = True,
    seed: int = 0,
) -> Scores:
    """Measure retrieval, exactly, in memory that does not grow with the square of the number of embeddings.

    Without a gallery each embedding is looked for among all others, itself left out by its row number. Items that are
    exactly as near count against the query: those that are not relevant come first. The scores depend neither on the
    block, the back end nor the order of the rows.

    Args:
        embeddings: (N, D) NumPy array or torch tensor, any float type, any device; "cosine" takes any length of rows.
        labels: (N,) integer class ids; or N collections of class ids or a boolean (N, C) array, of which one that is
            shared makes an item relevant. None with ``relevant``.
        gallery: (G, D) a separate set to search; None: the other queries.
        gallery_labels: labels of the gallery, of the same kind.
        metrics: names, such as "recall@5", "precision@5", "map@r", "map@1000", "map", "r_precision", "mrr", "nmi",
            "ami", "f1", "auroc", "eer", "fnmr@fmr=0.01" (docs/metrics.md has the definitions).
        distance: "cosine", "euclidean" or "inner" (the largest inner product is nearest).
        query_ids: (N,) identities, integers or strings: an item with the query's identity is not compared with it.
        gallery_ids: (G,) identities of the gallery's items.
        relevant: (P,) query rows and (P,) gallery rows in, (P,) booleans out, instead of labels.
        average: "micro", the mean over queries, or "macro", the mean over classes of the mean over their queries.
        backend: "faiss", "torch" (on the device of the gallery) or "auto": torch for CUDA tensors, else FAISS.
        block: queries at a time.
        per_query: keep each query's values.
        seed: of the k-means of "nmi", "ami" and "f1".

    Returns:
        Scores between 0 and 1 by metric name, also per query.

    Raises:
        UserError: for wrong shapes or types, a row that is zero (cosine) or not finite, an unknown metric, distance,
            back end or average, a gallery without labels, or if no query has anything to find.

    >>> z = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]])
    >>> evaluate(z, np.array([0, 0, 1, 1]), metrics=["recall@1", "map@r"])
    Scores(recall@1=1.0000, map@r=1.0000, queries=4, left_out=0)
    """
    parsed = {name: parse(name) for name in metrics}
    _check_options(parsed, average, block, gallery is not None)
    task = prepare(
        embeddings,
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        distance=distance,
        query_ids=query_ids,
        gallery_ids=gallery_ids,
        relevant=relevant,
        backend=backend,
    )
    if average == "macro" and task.classes is None:
        raise UserError("average 'macro' needs one integer class id a query")
    rows = np.flatnonzero(task.to_find > 0)
    ranked = {name: metric for name, metric in parsed.items() if metric.ranked}
    each = ranked_values(ranked, task, rows, block=block)
    values = {name: mean(each[name], task.classes, average) for name in ranked}
    values |= _other_values({n: m for n, m in parsed.items() if not m.ranked}, task, seed=seed)
    return Scores(
        {name: values[name] for name in parsed},
        each if per_query else {},
        queries=len(rows),
        left_out=len(task.to_find) - len(rows),
        classes=task.classes,
        average=average,
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
    source = make_backend(backend, items, distance, embeddings if gallery is None else gallery)
    return Task(Search(queries, items, distance, source, relevance, left_out), to_find, classes, gallery is not None)


def ranked_values(
    metrics: dict[str, Metric], task: Task, rows: NDArray[np.int64], *, block: int
) -> dict[str, NDArray[np.float64]]:
    """The metrics of ranked relevance for each query, NaN for those that are not in ``rows``.

    Queries that need about as many neighbours are searched together.

    Args:
        metrics: by name.
        task: what to search.
        rows: (m,) the queries to score; each has something to find.
        block: queries at a time.
    """
    each = {name: np.full(len(task.to_find), np.nan) for name in metrics}
    if not metrics:
        return each
    ranker = Ranker(task.search)
    need = depths(list(metrics.values()), task.to_find[rows], len(task.search.gallery))
    order = np.argsort(np.ceil(np.log2(need)), kind="stable")
    for start in range(0, len(rows), block):
        part = order[start : start + block]
        found = ranker.hits(rows[part], int(need[part].max()))
        place = np.full(len(task.to_find), -1)
        place[rows[part]] = np.arange(len(part))
        local = Hits(place[found.query], found.rank, found.nth)
        for name, metric in metrics.items():
            each[name][rows[part]] = score(metric, local, task.to_find[rows[part]])
    return each


def _check_options(parsed: dict[str, Metric], average: str, block: int, separate: bool) -> None:
    if not parsed:
        raise UserError("metrics is empty, name at least one")
    if average not in ("micro", "macro"):
        raise UserError(f"unknown average {average!r}{suggestion(average, ('micro', 'macro'))}")
    if block < 1:
        raise UserError(f"block must be at least 1, got {block}")
    clustered = [name for name, metric in parsed.items() if metric.kind in CLUSTERING]
    if separate and clustered:
        raise UserError(f"{clustered[0]} clusters one set, it is not defined for queries with a gallery")


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


def _other_values(metrics: dict[str, Metric], task: Task, *, seed: int) -> dict[str, float]:
    """Metrics that are no means over queries."""
    from dmlkd.retrieval.clustering import clustering_values
    from dmlkd.retrieval.verification import verification_values

    clustered = {name: metric for name, metric in metrics.items() if metric.kind in CLUSTERING}
    values: dict[str, float] = {}
    if clustered:
        if task.classes is None:
            raise UserError(f"{next(iter(clustered))} needs one integer class id a row")
        values |= clustering_values(clustered, task.search.queries, task.classes, seed=seed)
    verified = {name: metric for name, metric in metrics.items() if name not in clustered}
    if verified:
        values |= verification_values(verified, task.search, separate=task.separate)
    return values
