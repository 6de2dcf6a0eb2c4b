"""Class-balanced batches: different classes, different images, the same for the same seed and epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.data import ClassBalancedBatchSampler
from dmlkd.errors import ConfigError, DataError

sizes = st.lists(st.integers(1, 12), min_size=2, max_size=20)


def sampler_of(
    sizes: list[int], per_class: int, classes: int, seed: int
) -> tuple[np.ndarray, ClassBalancedBatchSampler]:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))
    return labels, ClassBalancedBatchSampler(labels, batch_size=per_class * classes, per_class=per_class, seed=seed)


@given(sizes=sizes, per_class=st.integers(1, 5), data=st.data(), seed=st.integers(0, 1000))
def test_batches_hold_different_classes_and_no_image_twice_an_epoch(sizes, per_class, data, seed):
    classes = data.draw(st.integers(1, len(sizes)))
    labels, sampler = sampler_of(sizes, per_class, classes, seed)
    batches = list(sampler)
    rows = [row for batch in batches for row in batch]
    assert len(rows) == len(set(rows))
    assert len(batches) == len(sampler) >= 1
    counts = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    for batch in batches:
        found, images = np.unique(labels[batch], return_counts=True)
        assert len(found) == classes
        assert all(n == min(per_class, counts[c]) for c, n in zip(found, images, strict=True))


@given(sizes=sizes, per_class=st.integers(1, 5), data=st.data(), seed=st.integers(0, 1000))
def test_there_are_as_many_batches_as_the_classes_allow(sizes, per_class, data, seed):
    classes = data.draw(st.integers(1, len(sizes)))
    _, sampler = sampler_of(sizes, per_class, classes, seed)
    groups = [max(size // per_class, 1) for size in sizes]
    possible = [t for t in range(1, sum(groups) + 1) if sum(min(g, t) for g in groups) >= t * classes]
    assert len(sampler) == max(possible)


def test_every_image_comes_once_when_the_sizes_divide():
    _, sampler = sampler_of([8] * 10, 4, 5, 0)
    assert sorted(row for batch in sampler for row in batch) == list(range(80))


def test_the_order_depends_on_seed_and_epoch_alone():
    labels = np.repeat(np.arange(10), 8)

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = ClassBalancedBatchSampler(labels, batch_size=20, per_class=4, seed=seed)
        list(sampler)  # an epoch already drawn changes nothing
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_lightning_sets_the_epoch():
    from lightning.fabric.utilities.data import _set_sampler_epoch
    from torch.utils.data import DataLoader

    sampler = ClassBalancedBatchSampler(np.repeat(np.arange(4), 4), batch_size=4, per_class=2)
    _set_sampler_epoch(DataLoader(range(16), batch_sampler=sampler), 5)
    assert sampler.epoch == 5


@pytest.mark.parametrize(
    ("batch_size", "per_class", "error", "message"),
    [
        (10, 4, ConfigError, "batch_size must be a multiple of per_class, got 10 and 4"),
        (0, 4, ConfigError, "batch_size must be at least 1, got 0"),
        (4, 0, ConfigError, "per_class must be at least 1, got 0"),
        (12, 2, DataError, "needs 6 classes, the training split has 3"),
    ],
)
def test_impossible_batches_are_refused(batch_size, per_class, error, message):
    with pytest.raises(error, match=message):
        ClassBalancedBatchSampler(np.repeat(np.arange(3), 5), batch_size=batch_size, per_class=per_class)
