"""Approximate search for galleries that are too large for an exact one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.arrays import Distance
from dmlkd.retrieval.backends import FaissSearch
from dmlkd.retrieval.similarity import pair_similarities


@dataclass(frozen=True)
class Index:
    """An approximate FAISS index.

    Args:
        factory: what ``faiss.index_factory`` reads, such as "HNSW32" or "IVF1024,Flat"
            (https://github.com/facebookresearch/faiss/wiki/The-index-factory).
        search: parameters of the search, such as "efSearch=128" or "nprobe=32".
        check: how many queries are searched exactly as well, to measure the index's recall.

    Raises:
        UserError: if ``check`` is less than 1.
    """

    factory: str
    search: str = ""
    check: int = 1000

    def __post_init__(self) -> None:
        if self.check < 1:
            raise UserError(f"check must be at least 1, got {self.check}")


class IndexSearch:
    """A back end whose candidates come from an approximate index; their order is exact.

    The graph or lists that FAISS builds, and so the candidates, depend on the order of the gallery's rows.

    Args:
        index: what to build.
        gallery: (G, D).
        distance: between rows.

    Attributes:
        check: how many queries to measure its recall with.

    Raises:
        UserError: if FAISS cannot read the factory string or the parameters, or the gallery is too small to train on.
    """

    exact = False

    def __init__(self, index: Index, gallery: NDArray[np.float32], distance: Distance) -> None:
        import faiss

        self._flat = FaissSearch(gallery, distance)
        self.check = index.check
        self._gallery = gallery
        self._distance = distance
        metric = faiss.METRIC_L2 if distance == "euclidean" else faiss.METRIC_INNER_PRODUCT
        try:
            self._index = faiss.index_factory(gallery.shape[1], index.factory, metric)
            self._index.train(gallery)
            self._index.add(gallery)
            if index.search:
                faiss.ParameterSpace().set_index_parameters(self._index, index.search)  # type: ignore[arg-type]
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split()).split("Error: ")[-1]
            raise UserError(
                f"FAISS cannot build or set up the index {index.factory!r} {index.search!r}: {reason}"
            ) from None

    def top(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k candidates of the index, nearest first; -1 where it finds fewer."""
        _, ids = self._index.search(queries, k)
        rows = np.repeat(np.arange(len(queries)), k)
        near = pair_similarities(queries, self._gallery, rows, ids.ravel(), self._distance).reshape(ids.shape)
        near[ids < 0] = -np.inf
        order = np.argsort(-near, axis=1, kind="stable")
        return np.take_along_axis(near, order, axis=1).astype(np.float32), np.take_along_axis(ids, order, axis=1)

    def every(self, queries: NDArray[np.float32], first: int = 0) -> NDArray[np.float64]:
        """All similarities, exactly."""
        return self._flat.every(queries, first)

    def recall(self, queries: NDArray[np.float32], k: int) -> float:
        """The share of the k nearest that the index finds; one as near as the k-th counts as found.

        Args:
            queries: (q, D).
            k: how many; at most what the gallery has.
        """
        found, ids = self.top(queries, k)
        _exact, exact_ids = self._flat.top(queries, k)
        last = pair_similarities(queries, self._gallery, np.arange(len(queries)), exact_ids[:, -1], self._distance)
        rounding = 4e-7 * np.maximum(1.0, np.abs(last)) * queries.shape[1] ** 0.5
        return float(((found >= (last - rounding)[:, None]) & (ids >= 0)).mean())
