"""Which images make up a batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler
from typing_extensions import override

from dmlkd.errors import ConfigError, DataError

Integers = NDArray[np.int64]


class Rows(list[int]):
    """The rows of a batch.

    Attributes:
        seed: of the random numbers that a worker process transforms their images with.
    """

    seed: int = 0


class EpochBatchSampler(Sampler[list[int]], ABC):
    """Base of the samplers of training batches: an order for each epoch, a share of each batch for each process.

    The order depends on the seed and the epoch alone, and so does the seed that each batch carries (:class:`Rows`). Of
    several processes each gives its share of every batch that one process would give: the rows of all ranks, joined in
    rank order, are that batch.

    Args:
        seed: for the order; the same in all processes.
        num_replicas: how many processes share each batch.
        rank: which of them this is, from 0.
    """

    def __init__(self, *, seed: int, num_replicas: int, rank: int) -> None:
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0
        self._resumed = (0, 0)

    @property
    def sampler(self) -> "EpochBatchSampler":
        """Itself: Lightning calls ``set_epoch`` before each epoch on what it finds under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def resume(self, epoch: int, batches: int) -> None:
        """Choose an epoch, and leave out the batches of it that are done already; other epochs stay whole."""
        self.epoch = epoch
        self._resumed = (epoch, batches)

    @abstractmethod
    def __len__(self) -> int:
        """How many batches an epoch has."""

    @abstractmethod
    def _drawn(self, rng: np.random.Generator) -> Iterator[list[int]]:
        """The batches of an epoch, those of one process."""

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        done = self._resumed[1] if self.epoch == self._resumed[0] else 0
        epoch = self.epoch
        for index, batch in enumerate(self._drawn(rng)):
            if index >= done:
                first, last = (len(batch) * rank // self.num_replicas for rank in (self.rank, self.rank + 1))
                rows = Rows(batch[first:last])
                entropy = np.random.SeedSequence([self.seed, epoch, index, self.rank])
                rows.seed = int(entropy.generate_state(1, np.uint64)[0])
                yield rows


class ClassBalancedBatchSampler(EpochBatchSampler):
    """Batches of ``batch_size / per_class`` classes with ``per_class`` images each.

    Every epoch the images of each class are shuffled and cut into groups of ``per_class``, and each batch takes a
    group from each of the classes that have most groups left, ties drawn at random; then the batches are shuffled. So
    no image comes twice in an epoch, and as many come as can. A class with fewer than ``per_class`` images gives
    those it has, in one group.

    With ``replacement`` it draws as the published recipe does
    (https://github.com/Confusezius/Revisiting_Deep_Metric_Learning_PyTorch): each class of a batch and then each of its
    images at random, independently of all others, so that a class or an image can come twice in one batch; an
    epoch is N // batch_size batches.

    The shares of several processes are of equal size, or one apart where a class with fewer than ``per_class``
    images has made the batch smaller.

    Args:
        labels: (N,) class ids.
        batch_size: images a batch, those of all processes together.
        per_class: images of each class in a batch.
        seed: for the order; the same in all processes.
        replacement: draw classes and images with replacement.
        num_replicas: how many processes share each batch.
        rank: which of them this is, from 0.
        rows: (M,) draw from these rows alone; None: from all.

    Raises:
        ConfigError: if ``batch_size`` is not a multiple of ``per_class`` and of ``num_replicas``, one of them is below
            1, or there is no such rank.
        DataError: if there are fewer classes (with replacement: images) than a batch needs, or a batch could have
            fewer images than there are processes.

    >>> sampler = ClassBalancedBatchSampler(np.array([0, 0, 1, 1, 2, 2]), batch_size=4, per_class=2, seed=0)
    >>> [sorted(np.array([0, 0, 1, 1, 2, 2])[batch].tolist()) for batch in sampler]
    [[0, 0, 1, 1]]
    """

    def __init__(
        self,
        labels: Integers,
        *,
        batch_size: int,
        per_class: int,
        seed: int = 0,
        replacement: bool = False,
        num_replicas: int = 1,
        rank: int = 0,
        rows: Integers | None = None,
    ) -> None:
        super().__init__(seed=seed, num_replicas=num_replicas, rank=rank)
        _check_numbers(batch_size, num_replicas, rank, per_class=per_class)
        self.per_class = per_class
        self.classes_per_batch = batch_size // per_class
        self.replacement = replacement
        rows = np.arange(len(labels)) if rows is None else rows
        order = rows[np.argsort(labels[rows], kind="stable")]
        _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
        self._rows = np.split(order, starts[1:])
        if replacement:
            self._batches = _batches_with_replacement(len(rows), batch_size)
        else:
            self._batches = _batches_without_replacement(counts, self.classes_per_batch, per_class)
            smallest = int(np.sort(np.minimum(counts, per_class))[: self.classes_per_batch].sum())
            if smallest < num_replicas:
                raise DataError(
                    f"a batch can have only {smallest} images, for classes have fewer than per_class = {per_class}; "
                    f"{num_replicas} processes cannot share it"
                )

    def __len__(self) -> int:
        return self._batches

    @override
    def _drawn(self, rng: np.random.Generator) -> Iterator[list[int]]:
        draw = _drawn_with_replacement if self.replacement else _drawn_without_replacement
        return draw(self._rows, self._batches, self.classes_per_batch, self.per_class, rng)


class ShuffledBatchSampler(EpochBatchSampler):
    """Batches of images in random order, whatever their labels: each image comes in one batch of every epoch.

    An epoch is cut into as few batches as ``batch_size`` allows, which differ by at most one image, so that there is
    no small one at the end. With several ``views`` an image comes so many times in its batch, for a data set that
    transforms it anew each time.

    Args:
        images: N, how many there are.
        batch_size: images a batch at most, those of all processes and all views together.
        views: times that each image comes in its batch.
        seed: for the order; the same in all processes.
        num_replicas: how many processes share each batch.
        rank: which of them this is, from 0.
        rows: (M,) draw from these rows alone; None: from all N.

    Raises:
        ConfigError: if ``batch_size`` is not a multiple of ``views`` and of ``num_replicas``, one of them is below 1,
            or there is no such rank.
        DataError: if there is no image, or a batch would have fewer images than there are processes.

    >>> list(ShuffledBatchSampler(5, batch_size=6, views=2, seed=3))
    [[4, 4, 2, 2, 1, 1], [3, 3, 0, 0]]
    """

    def __init__(
        self,
        images: int,
        *,
        batch_size: int,
        views: int = 1,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        rows: Integers | None = None,
    ) -> None:
        super().__init__(seed=seed, num_replicas=num_replicas, rank=rank)
        _check_numbers(batch_size, num_replicas, rank, views=views)
        self.views = views
        self._rows = np.arange(images) if rows is None else rows
        if not len(self._rows):
            raise DataError("there is no image to draw a batch from")
        self._batches = -(-len(self._rows) // (batch_size // views))
        smallest = views * (len(self._rows) // self._batches)
        if smallest < num_replicas:
            raise DataError(f"a batch would have only {smallest} images; {num_replicas} processes cannot share it")

    def __len__(self) -> int:
        return self._batches

    @override
    def _drawn(self, rng: np.random.Generator) -> Iterator[list[int]]:
        for batch in np.array_split(rng.permutation(self._rows), self._batches):
            yield np.repeat(batch, self.views).tolist()


class BatchShare(Sampler[list[int]]):
    """Every n-th of the batches of all rows in order, for n processes: the batches are those of one process.

    A process that would get none gets the first, which then comes twice.

    Args:
        rows: N, how many there are.
        batch_size: rows a batch; the last has what is left.
        num_replicas: n.
        rank: which of the processes this is, from 0.

    >>> list(BatchShare(5, batch_size=2, num_replicas=2, rank=1))
    [[2, 3]]
    """

    def __init__(self, rows: int, *, batch_size: int, num_replicas: int = 1, rank: int = 0) -> None:
        starts = range(rank * batch_size, rows, num_replicas * batch_size) or range(1)
        self._batches = [list(range(start, min(start + batch_size, rows))) for start in starts]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._batches


def _check_numbers(batch_size: int, num_replicas: int, rank: int, **parts: int) -> None:
    """Refuse sizes below 1, and a batch that does not fall into equal parts or processes."""
    parts["num_replicas"] = num_replicas
    for name, value in {"batch_size": batch_size, **parts}.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    for name, value in parts.items():
        if batch_size % value:
            raise ConfigError(f"batch_size must be a multiple of {name}, got {batch_size} and {value}")
    if not 0 <= rank < num_replicas:
        raise ConfigError(f"rank must be at least 0 and below num_replicas = {num_replicas}, got {rank}")


def _batches_without_replacement(counts: Integers, classes: int, per_class: int) -> int:
    """The largest T with sum(min(groups, T)) >= T * classes: what taking the fullest first attains."""
    if len(counts) < classes:
        raise DataError(
            f"a batch of {classes * per_class} with {per_class} images a class needs {classes} classes, "
            f"the training split has {len(counts)}; lower train.batch_size or raise train.per_class"
        )
    groups = np.maximum(counts // per_class, 1)
    low, high = 1, int(groups.sum()) // classes
    while low < high:
        middle = (low + high + 1) // 2
        enough = np.minimum(groups, middle).sum() >= middle * classes
        low, high = (middle, high) if enough else (low, middle - 1)
    return low


def _batches_with_replacement(images: int, batch_size: int) -> int:
    if images < batch_size:
        raise DataError(
            f"an epoch of {images} images has no whole batch of {batch_size}; lower train.batch_size, "
            "or draw without replacement"
        )
    return images // batch_size


def _drawn_without_replacement(
    rows: list[Integers], batches: int, classes: int, per_class: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    shuffled = [rng.permutation(own) for own in rows]
    left = np.array([max(len(own) // per_class, 1) for own in rows])
    drawn = []
    for _ in range(batches):
        chosen = np.lexsort((rng.random(len(left)), -left))[:classes]
        left[chosen] -= 1
        groups = [shuffled[c][left[c] * per_class : (left[c] + 1) * per_class] for c in chosen]
        drawn.append(np.concatenate(groups).tolist())
    for batch in rng.permutation(batches):
        yield drawn[batch]


def _drawn_with_replacement(
    rows: list[Integers], batches: int, classes: int, per_class: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    for _ in range(batches):
        chosen = rng.integers(len(rows), size=classes)
        yield np.concatenate([rng.choice(rows[c], size=per_class) for c in chosen]).tolist()
