"""Which images make up a batch."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from dmlkd.errors import ConfigError, DataError


class ClassBalancedBatchSampler(Sampler[list[int]]):
    """Batches of ``batch_size / per_class`` different classes with ``per_class`` different images each.

    Every epoch the images of each class are shuffled and cut into groups of ``per_class``, and each batch takes a
    group from each of the classes that have most groups left, ties drawn at random; then the batches are shuffled. So
    no image comes twice in an epoch, and as many come as can. A class with fewer than ``per_class`` images gives
    those it has, in one group.

    The order depends on the seed and the epoch alone.

    Args:
        labels: (N,) class ids.
        batch_size: images a batch.
        per_class: images of each class in a batch.
        seed: for the order.

    Raises:
        ConfigError: if ``batch_size`` is not a multiple of ``per_class``, or either is below 1.
        DataError: if there are fewer classes than a batch needs.

    >>> sampler = ClassBalancedBatchSampler(np.array([0, 0, 1, 1, 2, 2]), batch_size=4, per_class=2, seed=0)
    >>> [sorted(np.array([0, 0, 1, 1, 2, 2])[batch].tolist()) for batch in sampler]
    [[0, 0, 1, 1]]
    """

    def __init__(self, labels: NDArray[np.int64], *, batch_size: int, per_class: int, seed: int = 0) -> None:
        for name, value in (("batch_size", batch_size), ("per_class", per_class)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if batch_size % per_class:
            raise ConfigError(f"batch_size must be a multiple of per_class, got {batch_size} and {per_class}")
        self.per_class = per_class
        self.classes_per_batch = batch_size // per_class
        self.seed = seed
        self.epoch = 0
        order = np.argsort(labels, kind="stable")
        _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
        self._rows = np.split(order, starts[1:])
        if len(counts) < self.classes_per_batch:
            raise DataError(
                f"a batch of {batch_size} with {per_class} images a class needs {self.classes_per_batch} classes, "
                f"the training split has {len(counts)}; lower train.batch_size or raise train.per_class"
            )
        self._groups = np.maximum(counts // per_class, 1)
        self._batches = self._count_batches()

    def _count_batches(self) -> int:
        """The largest T with sum(min(groups, T)) >= T * classes_per_batch: what taking the fullest first attains."""
        low, high = 1, int(self._groups.sum()) // self.classes_per_batch
        while low < high:
            middle = (low + high + 1) // 2
            enough = np.minimum(self._groups, middle).sum() >= middle * self.classes_per_batch
            low, high = (middle, high) if enough else (low, middle - 1)
        return low

    @property
    def sampler(self) -> "ClassBalancedBatchSampler":
        """Itself: Lightning calls ``set_epoch`` before each epoch on what it finds under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = [rng.permutation(rows) for rows in self._rows]
        left = self._groups.copy()
        batches = []
        for _ in range(self._batches):
            chosen = np.lexsort((rng.random(len(left)), -left))[: self.classes_per_batch]
            left[chosen] -= 1
            batches.append([int(row) for c in chosen for row in self._group(shuffled[c], left[c])])
        for batch in rng.permutation(len(batches)):
            yield batches[batch]

    def _group(self, rows: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        return rows[number * self.per_class : (number + 1) * self.per_class]
