"""Classes that arrive over time: what a model keeps of earlier tasks, and whether it can search an older gallery."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.evaluation import evaluate
from dmlkd.retrieval.scores import Scores


def task_means(values: NDArray[np.float64], tasks: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of values over the queries of each task.

    Args:
        values: (N,) of each query; NaN: not scored.
        tasks: (N,) the task of its class, 0 to T - 1.

    Returns:
        (T,) means; NaN for a task with no scored query.

    >>> task_means(np.array([1.0, 0.0, 1.0, np.nan]), np.array([0, 0, 1, 1]))
    array([0.5, 1. ])
    """
    scored = ~np.isnan(values)
    size = int(tasks.max()) + 1
    with np.errstate(invalid="ignore"):
        return np.bincount(tasks[scored], values[scored], size) / np.bincount(tasks[scored], minlength=size)


def forgetting(scores: NDArray[np.float64]) -> float:
    r"""How much of its best score an earlier task has lost after the last, on average.

    .. math:: F = \frac{1}{T-1} \sum_{j < T} \Big( \max_{j \le t < T} a_{tj} - a_{Tj} \Big)

    with :math:`a_{tj}` the score on task j after task t (Chaudhry et al. 2018, https://arxiv.org/abs/1801.10112, who
    take the maximum from the first task on; before it is trained on, a task has nothing to forget). Negative where
    earlier tasks have gained.

    Args:
        scores: (T, T or more) after each task in turn, on each.

    Returns:
        The mean; NaN for one task.

    Raises:
        ValueError: if there are fewer columns than rows.

    >>> forgetting(np.array([[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.6, 0.6, 0.7]])).__round__(6)
    0.25
    """
    if scores.ndim != 2 or scores.shape[1] < scores.shape[0] or not len(scores):
        raise ValueError(f"scores must be (T, T or more), after each task on each, got {scores.shape}")
    last = len(scores) - 1
    if not last:
        return float("nan")
    return float(np.mean([scores[task:last, task].max() - scores[last, task] for task in range(last)]))


class CrossTest(NamedTuple):
    """How well the queries of a new model search the gallery that an old one has embedded.

    Attributes:
        old: the old model alone.
        new: the new model alone, its gallery embedded again.
        cross: queries of the new model, gallery of the old.
    """

    old: Scores
    new: Scores
    cross: Scores

    def gain(self, metric: str) -> float:
        """The share of the new model's gain that is there before the gallery is embedded again; NaN where it has none.

        (cross - old) / (new - old), the update gain of Shen et al. 2020, https://arxiv.org/abs/2003.11942. Above 0 the
        new model is backward compatible: its queries find more than the old one's in the same gallery.
        """
        whole = self.new[metric] - self.old[metric]
        return (self.cross[metric] - self.old[metric]) / whole if whole > 0 else float("nan")


def cross_search(
    *, new: Any, old: Any, labels: Any, old_gallery: Any = None, gallery_labels: Any = None
) -> dict[str, Any]:
    """The arguments of :func:`~dmlkd.retrieval.evaluate` for queries of a new model in the gallery of an old one.

    Args:
        new: (N, D) embeddings of the queries by the new model.
        old: (N, D) of the same images by the old one, which are the gallery if there is no other; a query then does not
            find its own image.
        labels: (N,) class ids.
        old_gallery: (G, D) of a gallery of its own by the old model.
        gallery_labels: (G,) class ids.

    Raises:
        UserError: if the embeddings are not of one dimension, so that no search is possible.
    """
    dims = [np.shape(part)[1] for part in (new, old)]
    if dims[0] != dims[1]:
        raise UserError(
            f"the new model's embeddings have {dims[0]} dimensions and the old gallery's {dims[1]}: they cannot be "
            "compared"
        )
    if old_gallery is not None:
        return {"embeddings": new, "labels": labels, "gallery": old_gallery, "gallery_labels": gallery_labels}
    ids = np.arange(len(labels))
    same = {"gallery": old, "gallery_labels": labels, "query_ids": ids, "gallery_ids": ids}
    return {"embeddings": new, "labels": labels, **same}


def cross_test(
    *,
    old: Any,
    new: Any,
    labels: Any,
    old_gallery: Any = None,
    new_gallery: Any = None,
    gallery_labels: Any = None,
    metrics: tuple[str, ...] = ("recall@1", "map@r"),
) -> CrossTest:
    """Measure backward compatibility: two models of the same images, alone and the new one in the old one's gallery.

    Args:
        old: (N, D) embeddings of the queries by the old model.
        new: (N, D) by the new one.
        labels: (N,) class ids.
        old_gallery: (G, D) of a gallery by the old model; None: the other queries are searched.
        new_gallery: (G, D) by the new one.
        gallery_labels: (G,) class ids.
        metrics: names that :func:`~dmlkd.retrieval.evaluate` knows, without clusterings.

    Raises:
        UserError: as of :func:`cross_search` and :func:`~dmlkd.retrieval.evaluate`.

    >>> old = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> found = cross_test(old=old, new=-old, labels=np.array([0, 0, 1, 1]), metrics=("recall@1",))
    >>> found.old["recall@1"], found.new["recall@1"], found.cross["recall@1"]
    (0.5, 0.5, 0.0)
    """
    alone = [
        evaluate(embeddings, labels, gallery=gallery, gallery_labels=gallery_labels, metrics=metrics)
        for embeddings, gallery in ((old, old_gallery), (new, new_gallery))
    ]
    crossed = cross_search(new=new, old=old, labels=labels, old_gallery=old_gallery, gallery_labels=gallery_labels)
    return CrossTest(alone[0], alone[1], evaluate(**crossed, metrics=metrics))
