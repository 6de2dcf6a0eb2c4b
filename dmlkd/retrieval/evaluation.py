"""Retrieval evaluation: every query against everything else, or against a gallery."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.arrays import class_ids, unit_rows
from dmlkd.retrieval.clustering import nmi
from dmlkd.retrieval.knn import Neighbours, nearest
from dmlkd.retrieval.metrics import Metric, depth, parse, score

DEFAULT_METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision", "nmi")


class Scores(Mapping[str, float]):
    """Scores by metric name, each the mean over the queries that have something to find.

    Attributes:
        per_query: (Q,) values of each metric that is a mean over queries; NaN for a query that was left out.
        queries: how many queries were scored.
        left_out: how many were not, because nothing in the gallery has their label.
    """

    def __init__(
        self, values: dict[str, float], per_query: dict[str, NDArray[np.float64]], *, queries: int, left_out: int
    ) -> None:
        self._values = values
        self.per_query = per_query
        self.queries = queries
        self.left_out = left_out

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value:.4f}" for name, value in self.items())
        return f"Scores({shown}, queries={self.queries}, left_out={self.left_out})"


def evaluate(
    embeddings: Any,
    labels: Any,
    *,
    gallery: Any = None,
    gallery_labels: Any = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    block: int = 1024,
    seed: int = 0,
) -> Scores:
    """Measure retrieval by cosine similarity, exactly.

    Without a gallery each embedding is looked for among all others, itself left out by its row number. Items that are
    exactly as near count against the query: those with another label come first.

    Args:
        embeddings: (N, D) NumPy array or torch tensor, any float type, any length of rows.
        labels: (N,) integer class ids.
        gallery: (G, D) a separate set to search; None: the other queries.
        gallery_labels: (G,) integer class ids of the gallery.
        metrics: of "recall@K", "precision@K", "map@r", "r_precision", "nmi" (docs/metrics.md has the definitions).
        block: queries at a time; the scores do not depend on it.
        seed: of the k-means of "nmi".

    Returns:
        Scores between 0 and 1 by metric name, also per query.

    Raises:
        UserError: for wrong shapes, a row that is zero or not finite, an unknown metric, a gallery without labels,
            or if no query has anything to find.

    >>> z = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]])
    >>> evaluate(z, np.array([0, 0, 1, 1]), metrics=["recall@1", "map@r"])
    Scores(recall@1=1.0000, map@r=1.0000, queries=4, left_out=0)
    """
    parsed = {name: parse(name) for name in metrics}
    if not parsed:
        raise UserError("metrics is empty, name at least one")
    if block < 1:
        raise UserError(f"block must be at least 1, got {block}")
    queries = unit_rows("embeddings", embeddings)
    query_ids = class_ids("labels", labels, len(queries))
    if (gallery is None) != (gallery_labels is None):
        raise UserError("gallery and gallery_labels must be given together")
    if gallery is None:
        items, item_ids = queries, query_ids
    else:
        items = unit_rows("gallery", gallery)
        item_ids = class_ids("gallery_labels", gallery_labels, len(items))
        if items.shape[1] != queries.shape[1]:
            raise UserError(f"embeddings have {queries.shape[1]} dimensions, the gallery has {items.shape[1]}")
        if "nmi" in parsed:
            raise UserError("nmi clusters one set, it is not defined for queries with a gallery")
    to_find = _relevant_items(query_ids, item_ids) - (gallery is None)
    if not (to_find > 0).any():
        raise UserError(f"none of the {len(queries)} queries has anything to find: no two items share a label")

    ranked = {name: metric for name, metric in parsed.items() if metric.kind != "nmi"}
    per_query = _ranked_scores(
        ranked, queries, query_ids, items, item_ids, to_find, exclude_self=gallery is None, block=block
    )
    values = {name: float(np.nanmean(per_query[name])) for name in ranked}
    if "nmi" in parsed:
        values["nmi"] = nmi(queries, query_ids, seed=seed)
    scored = int((to_find > 0).sum())
    return Scores({name: values[name] for name in parsed}, per_query, queries=scored, left_out=len(queries) - scored)


def _relevant_items(query_ids: NDArray[np.int64], item_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many items have each query's label."""
    classes, counts = np.unique(item_ids, return_counts=True)
    place = np.searchsorted(classes, query_ids).clip(max=len(classes) - 1)
    return np.where(classes[place] == query_ids, counts[place], 0)


def _ranked_scores(
    metrics: dict[str, Metric],
    queries: NDArray[np.float64],
    query_ids: NDArray[np.int64],
    items: NDArray[np.float64],
    item_ids: NDArray[np.int64],
    to_find: NDArray[np.int64],
    *,
    exclude_self: bool,
    block: int,
) -> dict[str, NDArray[np.float64]]:
    per_query = {name: np.full(len(queries), np.nan) for name in metrics}
    if not metrics:
        return per_query
    k = depth(list(metrics.values()), int(to_find.max()))
    for neighbours in nearest(queries, items, k, exclude_self=exclude_self, block=block):
        kept = to_find[neighbours.queries] > 0
        relevant = _relevance(neighbours, query_ids, item_ids)[kept, :k]
        rows = neighbours.queries[kept]
        for name, metric in metrics.items():
            per_query[name][rows] = score(metric, relevant, to_find[rows])
    return per_query


def _relevance(neighbours: Neighbours, query_ids: NDArray[np.int64], item_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the i-th nearest is relevant, nearest first; among equally near ones the irrelevant come first."""
    relevant = (item_ids[neighbours.ids] == query_ids[neighbours.queries, None]) & (neighbours.ids >= 0)
    order = np.lexsort((relevant, -neighbours.similarities), axis=1)
    return np.take_along_axis(relevant, order, axis=1)
