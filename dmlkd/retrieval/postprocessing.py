"""Re-ranking and expansion as options of an evaluation."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from dmlkd.errors import UserError, suggestion
from dmlkd.retrieval.arrays import class_ids
from dmlkd.retrieval.diffusion import diffusion
from dmlkd.retrieval.evaluation import evaluate
from dmlkd.retrieval.expansion import augment_database, expand_queries
from dmlkd.retrieval.lists import Ranking, evaluate_ranking
from dmlkd.retrieval.metrics import depths, parse
from dmlkd.retrieval.reranking import k_reciprocal
from dmlkd.retrieval.scores import Scores

Expand = Literal["queries", "database", "both"]

_RERANKERS: dict[str, Callable[..., Ranking]] = {"k_reciprocal": k_reciprocal, "diffusion": diffusion}
RERANKERS = tuple(_RERANKERS)
"""Names of the re-rankers."""

_LEAST_DEPTH = 100  # neighbours re-ranked, where the metrics look less deep


def evaluate_postprocessed(
    embeddings: Any,
    labels: Any,
    *,
    gallery: Any = None,
    gallery_labels: Any = None,
    metrics: Sequence[str] = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r"),
    expand: Expand | None = None,
    k: int = 10,
    alpha: float = 3.0,
    rerank: str | Callable[..., Ranking] | None = None,
) -> Scores:
    """Measure retrieval by cosine after expansion or re-ranking, which :func:`dmlkd.retrieval.evaluate` does without.

    Args:
        embeddings: (N, D) NumPy array or torch tensor.
        labels: (N,) integer class ids.
        gallery: (G, D); None: the other queries.
        gallery_labels: (G,) class ids.
        metrics: names of metrics of ranked retrieval.
        expand: "queries" (alpha-weighted query expansion), "database" (database-side augmentation) or "both", the
            database first. Where queries and gallery are one set, its augmentation moves the queries too.
        k: neighbours that are added.
        alpha: power of their cosine.
        rerank: "k_reciprocal", "diffusion", or a function of ``(queries, gallery, depth=...)`` that gives a ranking,
            such as ``functools.partial(k_reciprocal, k1=10)``.

    Returns:
        Scores between 0 and 1 by metric name, also per query.

    Raises:
        UserError: if neither or both of ``expand`` and ``rerank`` are given, for an unknown name, for a metric that is
            none of ranked retrieval, or as :func:`dmlkd.retrieval.evaluate` does.

    >>> z = np.array([[1.0, 0.0], [0.8, 0.3], [0.0, 1.0], [0.6, 0.5], [0.5, 0.6]])
    >>> evaluate_postprocessed(z, np.array([0, 0, 1, 0, 1]), metrics=["recall@1"], expand="queries", k=2)
    Scores(recall@1=0.6000, queries=5, left_out=0)
    """
    if (expand is None) == (rerank is None):
        raise UserError("give one of expand and rerank")
    for name in metrics:
        if not parse(name).ranked:
            raise UserError(f"{name} is no metric of ranked retrieval: it does not change with the order")
    if (gallery is None) != (gallery_labels is None):
        raise UserError("gallery and gallery_labels must be given together")
    if expand is not None:
        return _expanded(embeddings, labels, gallery, gallery_labels, metrics, expand, k=k, alpha=alpha)
    reranker = _reranker(rerank)
    own = class_ids("labels", labels, len(embeddings))
    theirs = own if gallery is None else class_ids("gallery_labels", gallery_labels, len(gallery))
    counts = {int(c): int(n) for c, n in zip(*np.unique(theirs, return_counts=True), strict=True)}
    to_find = np.array([counts.get(int(c), 0) - (gallery is None) for c in own])
    if not (to_find > 0).any():
        raise UserError(f"none of the {len(own)} queries has anything to find: no two items share a label")
    need = depths([parse(name) for name in metrics], to_find[to_find > 0], len(theirs) - (gallery is None)).max()
    ranking = reranker(embeddings, gallery, depth=max(int(need), _LEAST_DEPTH))
    return evaluate_ranking(ranking, labels, gallery_labels, metrics=metrics)


def _reranker(rerank: str | Callable[..., Ranking] | None) -> Callable[..., Ranking]:
    if callable(rerank):
        return rerank
    if rerank not in _RERANKERS:
        raise UserError(f"unknown re-ranking {rerank!r}{suggestion(str(rerank), RERANKERS)}")
    return _RERANKERS[rerank]


def _expanded(
    queries: Any,
    labels: Any,
    gallery: Any,
    gallery_labels: Any,
    metrics: Sequence[str],
    expand: str,
    *,
    k: int,
    alpha: float,
) -> Scores:
    if expand not in get_args(Expand):
        raise UserError(f"unknown expansion {expand!r}{suggestion(str(expand), get_args(Expand))}")
    if gallery is not None:
        items = augment_database(gallery, k=k, alpha=alpha) if expand != "queries" else gallery
        moved = expand_queries(queries, items, k=k, alpha=alpha) if expand != "database" else queries
        return evaluate(moved, labels, gallery=items, gallery_labels=gallery_labels, metrics=metrics)
    items = augment_database(queries, k=k, alpha=alpha) if expand != "queries" else queries
    if expand == "database":
        return evaluate(items, labels, metrics=metrics)
    own = np.arange(len(items))
    moved = expand_queries(items, k=k, alpha=alpha)
    return evaluate(
        moved, labels, gallery=items, gallery_labels=labels, metrics=metrics, query_ids=own, gallery_ids=own
    )
