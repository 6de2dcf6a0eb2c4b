"""Several processes: rows collected from all of them once each, and shares of the queries."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dmlkd.errors import UserError


class Collected(NamedTuple):
    """The rows of all processes, each once, by ascending row number.

    Attributes:
        embeddings: (N, D) on the CPU.
        labels: (N,) on the CPU.
        rows: (N,) row numbers in the data set.
    """

    embeddings: Tensor
    labels: Tensor
    rows: Tensor


def gather_rows(embeddings: Tensor, labels: Tensor, rows: Tensor, *, group: Any = None) -> Collected:
    """Collect what each process has embedded; a row that several have, such as a sampler's padding, counts once.

    Every process of the group must call this and gets the same. Shares may differ in size and be empty.

    Args:
        embeddings: (n, D) of this process; D is the same everywhere, also where n is 0.
        labels: (n,) integer class ids.
        rows: (n,) integer row numbers in the data set.
        group: of processes; None: all.

    Raises:
        UserError: if the shapes do not fit together, on the process where they do not.
    """
    if embeddings.ndim != 2 or labels.shape != rows.shape or labels.shape != embeddings.shape[:1]:
        shapes = tuple(embeddings.shape), tuple(labels.shape), tuple(rows.shape)
        raise UserError(f"embeddings (n, D), labels (n,) and rows (n,) do not fit together, got {shapes}")
    sizes = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=_device(group))
    sizes[dist.get_rank(group)] = len(rows)
    dist.all_reduce(sizes, group=group)
    together = [_gathered(part.detach(), sizes.tolist(), group) for part in (embeddings, labels, rows)]
    _, first = np.unique(together[2].numpy(), return_index=True)
    return Collected(*(part[torch.from_numpy(first)] for part in together))


def _gathered(part: Tensor, sizes: list[int], group: Any) -> Tensor:
    """The parts of all processes one after the other, each padded to the longest on its way."""
    padded = part.new_zeros((max(sizes), *part.shape[1:]), device=_device(group))
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([received[:size].cpu() for received, size in zip(parts, sizes, strict=True)])


def _device(group: Any) -> str:
    return "cuda" if dist.get_backend(group) == "nccl" else "cpu"


class Share:
    """This process's share of the queries.

    Args:
        group: of processes; None: all.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self._size = dist.get_world_size(group)
        self._rank = dist.get_rank(group)

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Every n-th of the rows, for n processes."""
        return rows[self._rank :: self._size]

    def joined(self, columns: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """Columns with the values of all processes, where each has those of its share and NaN elsewhere.

        Adding 0 is exact, so the values are those of one process to the last bit.
        """
        if not columns:
            return columns
        together = np.stack(list(columns.values()))
        there = ~np.isnan(together)
        counted = self._summed(there.astype(np.float64))
        total = self._summed(np.where(there, together, 0.0))
        return dict(zip(columns, np.where(counted > 0, total, np.nan), strict=True))

    def from_first(self, values: dict[str, float]) -> dict[str, float]:
        """The values of the first process, on all."""
        own = np.array(list(values.values())) if self._rank == 0 else np.zeros(len(values))
        return dict(zip(values, self._summed(own).tolist(), strict=True))

    @property
    def first(self) -> bool:
        """Whether this is the process that does what only one need do."""
        return self._rank == 0

    def _summed(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        tensor = torch.from_numpy(values).to(_device(self._group))
        dist.all_reduce(tensor, group=self._group)
        summed: NDArray[np.float64] = tensor.cpu().numpy()
        return summed
