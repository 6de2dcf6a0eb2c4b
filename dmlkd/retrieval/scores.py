"""What an evaluation gives back."""

from collections.abc import Iterator, Mapping
from math import fsum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError

Average = Literal["micro", "macro"]


class Scores(Mapping[str, float]):
    """Scores by metric name; those of ranked retrieval are means over the queries that have something to find.

    Attributes:
        per_query: (Q,) values of each metric that is a mean over queries; NaN for a query that was left out or not
            drawn. Empty if they were not asked for.
        queries: how many queries were scored.
        left_out: how many were not, because nothing in the gallery is relevant to them.
        classes: (Q,) the queries' class ids; None for labels of several classes.
        average: "micro", over queries, or "macro", over classes.
        search_recall: share of the true nearest neighbours that an approximate index found; None for exact search.
    """

    def __init__(
        self,
        values: dict[str, float],
        per_query: dict[str, NDArray[np.float64]],
        *,
        queries: int,
        left_out: int,
        classes: NDArray[np.int64] | None = None,
        average: Average = "micro",
        search_recall: float | None = None,
    ) -> None:
        self._values = values
        self.per_query = per_query
        self.queries = queries
        self.left_out = left_out
        self.classes = classes
        self.average = average
        self.search_recall = search_recall

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value:.4f}" for name, value in self.items())
        return f"Scores({shown}, queries={self.queries}, left_out={self.left_out})"

    def interval(self, name: str, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """A bootstrap interval of a mean over queries, which draws whole classes.

        Args:
            name: of a metric that is a mean over queries.
            level: the share of resampled means inside.
            resamples: how many are drawn.
            seed: of the draws.

        Returns:
            Its lower and upper end.

        Raises:
            UserError: if the metric has no values per query.
        """
        from dmlkd.retrieval.intervals import bootstrap_interval

        if name not in self.per_query:
            raise UserError(f"{name!r} has no values per query; those that have: {', '.join(self.per_query) or 'none'}")
        values = self.per_query[name]
        clusters = np.arange(len(values)) if self.classes is None else self.classes
        return bootstrap_interval(values, clusters, average=self.average, level=level, resamples=resamples, seed=seed)


def mean(values: NDArray[np.float64], classes: NDArray[np.int64] | None, average: Average) -> float:
    """The mean over queries, or over classes, without those that are NaN; the same to the last bit in any row order.

    Args:
        values: (Q,).
        classes: (Q,) class ids, for "macro".
        average: "micro" or "macro".
    """
    scored = ~np.isnan(values)
    kept = values[scored]
    if not len(kept):
        return float("nan")
    if average == "micro":
        return fsum(kept) / len(kept)
    assert classes is not None
    order = np.lexsort((kept, classes[scored]))
    of_class = classes[scored][order]
    starts = np.flatnonzero(np.concatenate([[True], of_class[1:] != of_class[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(kept)]]))
    return fsum(np.add.reduceat(kept[order], starts) / sizes) / len(starts)
