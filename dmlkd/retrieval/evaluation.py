"""Retrieval evaluation: every query against everything else, or against a gallery."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError, suggestion
from dmlkd.retrieval.approximate import Index, IndexSearch
from dmlkd.retrieval.arrays import Distance
from dmlkd.retrieval.backends import BackendName
from dmlkd.retrieval.metrics import CLUSTERING, Hits, Metric, depths, parse, score
from dmlkd.retrieval.ranking import Ranker
from dmlkd.retrieval.relevance import RelevanceFunction
from dmlkd.retrieval.scores import Average, Scores, mean
from dmlkd.retrieval.task import Task, prepare

DEFAULT_METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision", "nmi")
DEFAULT_BLOCK = 4096

_NEIGHBOURS = 2**22  # held at a time, however many a query needs


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
    index: Index | str | None = None,
    sample: int | None = None,
    block: int = DEFAULT_BLOCK,
    per_query: bool = True,
    group: Any = None,
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
        index: an approximate index for a large gallery, such as "HNSW32" or ``Index("IVF1024,Flat", "nprobe=32")``; the
            scores then hold the share of the true nearest that it found, in ``search_recall``.
        sample: score only so many queries, drawn without replacement; ``interval`` says how far the mean may be off.
        block: queries at a time.
        per_query: keep each query's values.
        group: of torch.distributed processes, such as ``dist.group.WORLD``, that call this with the same arguments:
            each scores a share of the queries, and all get the scores of one process. None: this process alone.
        seed: of the k-means of "nmi", "ami" and "f1", and of the sample.

    Returns:
        Scores between 0 and 1 by metric name, also per query.

    Raises:
        UserError: for wrong shapes or types, a row that is zero (cosine) or not finite, an unknown metric, distance,
            back end, average or index, a gallery without labels, or if no query has anything to find.

    >>> z = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]])
    >>> evaluate(z, np.array([0, 0, 1, 1]), metrics=["recall@1", "map@r"])
    Scores(recall@1=1.0000, map@r=1.0000, queries=4, left_out=0)
    """
    parsed = {name: parse(name) for name in metrics}
    _check_options(parsed, average, block, gallery is not None, index is not None)
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
        index=index,
    )
    if average == "macro" and task.classes is None:
        raise UserError("average 'macro' needs one integer class id a query")
    ranked = {name: metric for name, metric in parsed.items() if metric.ranked}
    found = np.flatnonzero(task.to_find > 0)
    rows = found if sample is None else _drawn(found, sample, seed)
    each, recall = _shared(ranked, task, rows, block=block, group=group)
    values = {name: mean(each[name], task.classes, average) for name in ranked}
    others = {name: metric for name, metric in parsed.items() if not metric.ranked}
    values |= _other_values(others, task, seed=seed, group=group)
    return Scores(
        {name: values[name] for name in parsed},
        each if per_query else {},
        queries=len(rows),
        left_out=len(task.to_find) - len(found),
        classes=task.classes,
        average=average,
        search_recall=recall,
    )


def _drawn(rows: NDArray[np.int64], sample: int, seed: int) -> NDArray[np.int64]:
    if sample < 1:
        raise UserError(f"sample must be at least 1, got {sample}")
    if sample >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, size=sample, replace=False))


def _shared(
    metrics: dict[str, Metric], task: Task, rows: NDArray[np.int64], *, block: int, group: Any
) -> tuple[dict[str, NDArray[np.float64]], float | None]:
    """The metrics for each query, from all processes, and the recall of an approximate index."""
    if group is None:
        return ranked_values(metrics, task, rows, block=block), _search_recall(metrics, task, rows)
    from dmlkd.retrieval.distributed import Share

    share = Share(group)
    each = share.joined(ranked_values(metrics, task, share.of(rows), block=block))
    recall = _search_recall(metrics, task, rows) if share.first else None
    if isinstance(task.search.backend, IndexSearch):
        recall = share.from_first({"recall": recall or 0.0})["recall"]
    return each, recall


def _search_recall(metrics: dict[str, Metric], task: Task, rows: NDArray[np.int64]) -> float | None:
    backend = task.search.backend
    if not metrics or not isinstance(backend, IndexSearch):
        return None
    chosen = _drawn(rows, backend.check, 0)
    k = int(depths(list(metrics.values()), task.to_find[chosen], len(task.search.gallery)).max())
    return backend.recall(task.search.queries[chosen], k)


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
    if not metrics or not len(rows):
        return each
    ranker = Ranker(task.search)
    need = depths(list(metrics.values()), task.to_find[rows], len(task.search.gallery))
    order = np.argsort(np.ceil(np.log2(need)), kind="stable")
    place = np.full(len(task.to_find), -1)
    start = 0
    while start < len(rows):
        part = order[start : start + block]
        if (deepest := int(need[part].max())) < len(task.search.gallery):  # whole rankings have blocks of their own
            part = part[: max(1, _NEIGHBOURS // deepest)]
        start += len(part)
        found = ranker.hits(rows[part], int(need[part].max()))
        place[rows[part]] = np.arange(len(part))
        local = Hits(place[found.query], found.rank, found.nth)
        for name, metric in metrics.items():
            each[name][rows[part]] = score(metric, local, task.to_find[rows[part]])
    return each


def _check_options(parsed: dict[str, Metric], average: str, block: int, separate: bool, approximate: bool) -> None:
    if not parsed:
        raise UserError("metrics is empty, name at least one")
    if average not in ("micro", "macro"):
        raise UserError(f"unknown average {average!r}{suggestion(average, ('micro', 'macro'))}")
    if block < 1:
        raise UserError(f"block must be at least 1, got {block}")
    clustered = [name for name, metric in parsed.items() if metric.kind in CLUSTERING]
    if separate and clustered:
        raise UserError(f"{clustered[0]} clusters one set, it is not defined for queries with a gallery")
    whole = [name for name, metric in parsed.items() if metric.kind in ("map", "mrr") and not metric.at]
    if approximate and whole:
        raise UserError(f"{whole[0]} ranks the whole gallery, which an approximate index does not: take map@1000, say")


def _other_values(metrics: dict[str, Metric], task: Task, *, seed: int, group: Any) -> dict[str, float]:
    """Metrics that are no means over queries; of several processes the first computes them."""
    if not metrics:
        return {}
    if task.classes is None and any(metric.kind in CLUSTERING for metric in metrics.values()):
        raise UserError(f"{next(iter(metrics))} needs one integer class id a row")
    if group is None:
        return _of_all_rows(metrics, task, seed=seed)
    from dmlkd.retrieval.distributed import Share

    share = Share(group)
    return share.from_first(_of_all_rows(metrics, task, seed=seed) if share.first else dict.fromkeys(metrics, 0.0))


def _of_all_rows(metrics: dict[str, Metric], task: Task, *, seed: int) -> dict[str, float]:
    from dmlkd.retrieval.clustering import clustering_values
    from dmlkd.retrieval.verification import verification_values

    values: dict[str, float] = {}
    clustered = {name: metric for name, metric in metrics.items() if metric.kind in CLUSTERING}
    if clustered and task.classes is not None:
        values |= clustering_values(clustered, task.search.queries, task.classes, seed=seed)
    verified = {name: metric for name, metric in metrics.items() if name not in clustered}
    if verified:
        values |= verification_values(verified, task.search, separate=task.separate)
    return values
