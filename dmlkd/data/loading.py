"""Loading batches in this process or in others, whose errors arrive as one clear line."""

import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dmlkd.data.dataset import ImageDataset
from dmlkd.data.sampling import Rows
from dmlkd.errors import DataError
from dmlkd.signals import Batch

T = TypeVar("T")

_AHEAD = 32  # items that in_order makes at a time


def loader(
    dataset: ImageDataset,
    *,
    batch_size: int = 1,
    batch_sampler: Sampler[list[int]] | None = None,
    workers: int = 0,
    persistent: bool = False,
) -> DataLoader[Batch]:
    """A loader of batches, pinned for the GPU where there is one.

    Each worker process has random numbers of its own, which go on from epoch to epoch and depend on torch's seed alone.
    Where the batch sampler gives each batch a seed (:class:`~dmlkd.data.sampling.Rows`), the random numbers of a batch
    depend on that alone: not on the worker that loads it, nor on what was loaded before.

    Args:
        dataset: what to load.
        batch_size: images a batch, in order; not used with ``batch_sampler``.
        batch_sampler: which rows make up a batch.
        workers: processes that load; 0: this one.
        persistent: keep the processes from epoch to epoch; starting them draws no random number.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed()) if persistent and workers else None
    batches: DataLoader[Batch] = DataLoader(
        _Batches(dataset),
        batch_size=batch_size if batch_sampler is None else 1,
        batch_sampler=batch_sampler,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_left_alone_by_ctrl_c,
        generator=generator,
    )
    return batches


def _left_alone_by_ctrl_c(_: int) -> None:
    """The terminal sends Ctrl-C to every process; it is the main one that decides what becomes of the batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Batches(Dataset[Batch]):
    """A data set that is asked for whole batches."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Batch:
        return self.dataset[row]

    def __getitems__(self, rows: list[int]) -> Batch:
        if isinstance(rows, Rows) and get_worker_info() is not None:
            torch.manual_seed(rows.seed)
            np.random.seed(rows.seed % 2**32)  # noqa: NPY002
            random.seed(rows.seed)
        return self.dataset.batch(rows)


def _as_it_is(batch: T) -> T:
    return batch


_KILLED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (exited unexpectedly|is killed by signal: [\w ]+)")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what a worker process died of into one line.

    Raises:
        DataError: for an image that could not be read there, as it would be in this process; for a process that was
            killed, saying so.
    """
    try:
        yield
    except DataError as error:
        first, *_, last = [*str(error).splitlines(), ""][:1] + str(error).rstrip().splitlines()[-1:]
        if not first.startswith("Caught DataError in DataLoader worker"):
            raise
        raise DataError(last.partition("DataError: ")[2]) from None
    except RuntimeError as error:
        if (killed := _KILLED.search(str(error))) is None:
            raise
        raise DataError(
            f"the process {killed[1]} that loads images {killed[2]}: often the memory is not enough; "
            "lower data.workers (0: no such processes)"
        ) from error


def in_order(dataset: Dataset[T], *, workers: int = 0) -> Iterator[T]:
    """Each item of a data set, in order, made in this process or in others; no random number is drawn.

    Args:
        dataset: what to go through.
        workers: processes; 0: this one.
    """
    items: DataLoader[Any] = DataLoader(
        dataset, batch_size=_AHEAD, collate_fn=_as_it_is, num_workers=workers, generator=torch.Generator()
    )
    with clear_errors():
        for batch in items:
            yield from batch
