"""Search over shards of an index: each finds its own nearest, and the nearest of these are the nearest of all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmlkd.errors import UserError
from dmlkd.retrieval.index import Nearest, SearchIndex


def merge_nearest(parts: Sequence[Nearest], k: int) -> Nearest:
    """The k nearest of what several shards found; of equally near ones those of the earlier shard.

    Exact: if each part holds the k nearest of its shard, the result holds the k nearest of all.

    Args:
        parts: of the same queries, one a shard.
        k: how many.

    Raises:
        UserError: if there is no part, or they are of different numbers of queries.
    """
    if len({len(part.ids) for part in parts}) != 1:
        raise UserError(f"shards must have searched the same queries, got {[len(part.ids) for part in parts]}")
    near = np.concatenate([part.similarities for part in parts], axis=1)
    ids = np.concatenate([part.ids for part in parts], axis=1)
    order = np.argsort(-near, axis=1, kind="stable")[:, :k]
    return Nearest(np.take_along_axis(near, order, axis=1), np.take_along_axis(ids, order, axis=1))


class ShardedIndex:
    """Several index folders searched as one.

    Equal to the single index of all rows where every shard holds the same training (``build_index(like=...)``) or
    needs none; of graphs such as HNSW each shard has its own.

    Args:
        folders: of the shards, with ids that differ.
        search: as of :class:`~dmlkd.retrieval.index.SearchIndex`.

    Raises:
        UserError: if there is none, or they are of different models, dimensions or distances.
    """

    def __init__(self, folders: Sequence[Path], *, search: str | None = None) -> None:
        if not folders:
            raise UserError("there are no shards to search")
        self.shards = [SearchIndex(folder, search=search) for folder in folders]
        first = self.shards[0]
        for other in self.shards[1:]:
            for key in ("model", "dim", "distance"):
                if other.manifest.get(key) != first.manifest.get(key):
                    raise UserError(f"{other.folder} and {first.folder} are no shards of one index: {key} differs")

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def search(self, queries: Any, k: int, *, model: str | None = None) -> Nearest:
        """The k nearest of each query over all shards; arguments as of a single index."""
        return merge_nearest([shard.search(queries, k, model=model) for shard in self.shards], k)
