"""Exact search: each back end finds candidates fast, in float32, or computes all similarities in float64."""

from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError, suggestion
from dmlkd.retrieval.arrays import Distance

BackendName = Literal["auto", "faiss", "torch"]

_TILE = 2**25  # similarities held at a time by a search in torch
_CHUNK = 8192  # gallery rows made float64 at a time


class Backend(Protocol):
    """Similarities of queries to a gallery: inner products, or minus squared Euclidean distances."""

    @property
    def exact(self) -> bool:
        """Whether ``top`` misses none of the nearest, but for rounding; else -1 stands for what it does not find."""

    def top(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k largest similarities of each query in float32, descending, and the rows of their items."""

    def every(self, queries: NDArray[np.float32], first: int = 0) -> NDArray[np.float64]:
        """(b, G - first) all similarities from item ``first`` on, computed in float64 from the float32 rows."""


def make_backend(name: str, gallery: NDArray[np.float32], distance: Distance, given: Any) -> Backend:
    """The back end of a name; "auto" is torch for CUDA tensors and FAISS for the rest.

    Args:
        name: "auto", "faiss" or "torch".
        gallery: (G, D).
        distance: between rows.
        given: the gallery as the caller gave it, whose device is searched on.

    Raises:
        UserError: for another name.
    """
    device = getattr(given, "device", "cpu")
    on_cuda = getattr(device, "type", "cpu") == "cuda"
    if name not in get_args(BackendName):
        raise UserError(f"unknown backend {name!r}{suggestion(name, get_args(BackendName))}")
    if name == "torch" or (name == "auto" and on_cuda):
        return TorchSearch(gallery, distance, str(device) if on_cuda else "cpu")
    return FaissSearch(gallery, distance)


class FaissSearch:
    """FAISS's flat search over the rows as they lie in memory.

    Args:
        gallery: (G, D), not copied.
        distance: between rows.
    """

    exact = True

    def __init__(self, gallery: NDArray[np.float32], distance: Distance) -> None:
        self._gallery = gallery
        self._distance = distance

    def top(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest."""
        import faiss

        euclidean = self._distance == "euclidean"
        metric = faiss.METRIC_L2 if euclidean else faiss.METRIC_INNER_PRODUCT
        found, ids = faiss.knn(queries, self._gallery, k, metric=metric)
        return (-found if euclidean else found), ids

    def every(self, queries: NDArray[np.float32], first: int = 0) -> NDArray[np.float64]:
        """All similarities, by matrix products in NumPy."""
        left = queries.astype(np.float64)
        gallery = self._gallery[first:]
        out = np.empty((len(left), len(gallery)))
        for start in range(0, len(gallery), _CHUNK):
            right = gallery[start : start + _CHUNK].astype(np.float64)
            part = out[:, start : start + _CHUNK]
            np.matmul(left, right.T, out=part)
            if self._distance == "euclidean":
                part *= 2
                part -= (right * right).sum(axis=1)
        if self._distance == "euclidean":
            out -= (left * left).sum(axis=1)[:, None]
        return out


class TorchSearch:
    """Matrix products and topk in torch, in tiles of bounded size.

    Args:
        gallery: (G, D).
        distance: between rows.
        device: where to search.
    """

    exact = True

    def __init__(self, gallery: NDArray[np.float32], distance: Distance, device: str) -> None:
        import torch

        self._device = torch.device(device)
        self._gallery = torch.from_numpy(gallery).to(self._device)
        self._squares = (self._gallery**2).sum(dim=1) if distance == "euclidean" else None

    def top(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest."""
        import torch

        left = torch.from_numpy(queries).to(self._device)
        squares = None if self._squares is None else (left**2).sum(dim=1, keepdim=True)
        best: Any = None
        step = max(1, _TILE // len(queries))
        for start in range(0, len(self._gallery), step):
            with _full_float32():
                tile = left @ self._gallery[start : start + step].T
            if self._squares is not None and squares is not None:
                tile = 2 * tile - self._squares[start : start + step] - squares
            near, ids = tile.topk(min(k, tile.shape[1]), dim=1)
            ids += start
            if best is not None:
                near, ids = torch.cat([best[0], near], dim=1), torch.cat([best[1], ids], dim=1)
                near, place = near.topk(min(k, near.shape[1]), dim=1)
                ids = ids.gather(1, place)
            best = near, ids
        return best[0].cpu().numpy(), best[1].cpu().numpy()

    def every(self, queries: NDArray[np.float32], first: int = 0) -> NDArray[np.float64]:
        """All similarities."""
        import torch

        left = torch.from_numpy(queries).to(self._device).double()
        parts = []
        for start in range(first, len(self._gallery), _CHUNK):
            right = self._gallery[start : start + _CHUNK].double()
            part = left @ right.T
            if self._squares is not None:
                part = 2 * part - (right**2).sum(dim=1) - (left**2).sum(dim=1, keepdim=True)
            parts.append(part)
        every: NDArray[np.float64] = torch.cat(parts, dim=1).cpu().numpy()
        return every


class _full_float32:  # noqa: N801 - used as a function
    """Matrix products in float32 without TF32's shorter mantissa, and the caller's choice put back."""

    def __enter__(self) -> None:
        import torch

        self._before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_float32_matmul_precision(self._before)
