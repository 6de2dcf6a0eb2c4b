"""Class-balanced batches: different classes, different images, the same for the same seed and epoch."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.data import BatchShare, ClassBalancedBatchSampler, ShuffledBatchSampler
from dmlkd.errors import ConfigError, DataError

sizes = st.lists(st.integers(1, 12), min_size=2, max_size=20)
options = st.fixed_dictionaries({"replacement": st.booleans(), "seed": st.integers(0, 1000)})


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


def processes_of(labels: np.ndarray, count: int, epoch: int, **arguments) -> list[list[list[int]]]:
    """The batches of each of so many processes."""
    found = []
    for rank in range(count):
        sampler = ClassBalancedBatchSampler(labels, num_replicas=count, rank=rank, **arguments)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    return found


@given(
    count=st.integers(1, 4), classes=st.integers(1, 6), per=st.integers(1, 4), options=options, epoch=st.integers(0, 9)
)
def test_processes_share_the_batches_of_one_in_rank_order(count, classes, per, options, epoch):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(count * classes), 3 * per))
    arguments = {"batch_size": count * classes * per, "per_class": per, **options}
    (alone,) = processes_of(labels, 1, epoch, **arguments)
    shares = processes_of(labels, count, epoch, **arguments)
    assert [[row for part in parts for row in part] for parts in zip(*shares, strict=True)] == alone
    assert {len(part) for own in shares for part in own} == {classes * per}
    if not options["replacement"]:
        rows = [{row for part in own for row in part} for own in shares]
        assert sum(map(len, rows)) == len(set().union(*rows))


@given(sizes=sizes, data=st.data(), seed=st.integers(0, 1000))
def test_shares_of_batches_that_are_not_full_differ_by_one_image_at_most(sizes, data, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = data.draw(st.integers(1, min(4, len(sizes))))
    arguments = {"batch_size": count * 4, "per_class": 4, "seed": seed}
    (alone,) = processes_of(labels, 1, 0, **arguments)
    smallest = sum(sorted(min(size, 4) for size in sizes)[:count])
    assert smallest >= count
    for parts, batch in zip(zip(*processes_of(labels, count, 0, **arguments), strict=True), alone, strict=True):
        assert [row for part in parts for row in part] == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert min(map(len, parts)) >= 1


@given(sizes=sizes, per_class=st.integers(1, 3), classes=st.integers(1, 3), seed=st.integers(0, 1000))
def test_the_published_sampler_draws_groups_of_one_class_and_n_over_batch_size_batches(sizes, per_class, classes, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), [size + 5 for size in sizes]))
    sampler = ClassBalancedBatchSampler(
        labels, batch_size=per_class * classes, per_class=per_class, seed=seed, replacement=True
    )
    batches = list(sampler)
    assert len(batches) == len(sampler) == len(labels) // (per_class * classes)
    for batch in batches:
        assert (np.ptp(labels[batch].reshape(classes, per_class), axis=1) == 0).all()


def test_the_published_sampler_draws_classes_and_images_evenly_and_independently():
    labels = np.repeat(np.arange(4), [1, 2, 3, 24])  # a class counts once, however many images it has
    drawn: list[list[int]] = []
    for epoch in range(3000):
        sampler = ClassBalancedBatchSampler(labels, batch_size=6, per_class=2, seed=1, replacement=True)
        sampler.set_epoch(epoch)
        drawn += sampler
    batches = np.array(drawn)  # 15,000 batches of 3 groups of 2
    groups = labels[batches].reshape(-1, 3, 2)[:, :, 0]
    assert np.bincount(groups.ravel()) / groups.size == pytest.approx([0.25] * 4, abs=0.01)
    assert (groups[:, 0] == groups[:, 1]).mean() == pytest.approx(1 / 4, abs=0.02)
    of_two = batches.reshape(-1, 2)[groups.ravel() == 1]
    assert (of_two[:, 0] == of_two[:, 1]).mean() == pytest.approx(1 / 2, abs=0.02)


@pytest.mark.parametrize("replacement", [False, True])
def test_the_order_with_or_without_replacement_repeats_and_changes_with_the_epoch(replacement):
    labels = np.repeat(np.arange(10), 8)
    arguments = {"batch_size": 20, "per_class": 4, "replacement": replacement}
    (first,), (again,), (next_epoch,), (other,) = (
        processes_of(labels, 1, epoch, seed=seed, **arguments) for seed, epoch in [(0, 3), (0, 3), (0, 4), (1, 3)]
    )
    assert first == again
    assert first != next_epoch
    assert first != other


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_replicas": 4}, ConfigError, "batch_size must be a multiple of num_replicas, got 6 and 4"),
        ({"num_replicas": 0}, ConfigError, "num_replicas must be at least 1, got 0"),
        ({"num_replicas": 2, "rank": 2}, ConfigError, "below num_replicas = 2, got 2"),
        ({"num_replicas": 2, "rank": -1}, ConfigError, "rank must be at least 0 and below num_replicas = 2, got -1"),
        ({"num_replicas": 6, "rank": 1}, DataError, "a batch can have only 2 images, .* 6 processes cannot share it"),
        ({"replacement": True, "batch_size": 18}, DataError, "an epoch of 17 images has no whole batch of 18"),
    ],
)
def test_impossible_shares_and_epochs_are_refused(arguments, error, message):
    labels = np.repeat(np.arange(4), [1, 5, 1, 10])
    with pytest.raises(error, match=message):
        ClassBalancedBatchSampler(labels, **{"batch_size": 6, "per_class": 3, **arguments})


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


@pytest.mark.parametrize("replacement", [False, True])
def test_a_resumed_epoch_gives_the_batches_that_are_left_and_the_next_is_whole(replacement):
    def sampler():
        return ClassBalancedBatchSampler(np.arange(60) % 6, batch_size=8, per_class=2, seed=3, replacement=replacement)

    unbroken, resumed = sampler(), sampler()
    resumed.resume(2, 4)
    for epoch in (2, 3):
        for one in (unbroken, resumed):
            one.set_epoch(epoch)
        batches = [(rows, rows.seed) for rows in unbroken]
        assert [(rows, rows.seed) for rows in resumed] == batches[4 if epoch == 2 else 0 :]
    assert len(resumed) == len(batches)


def test_the_seeds_of_batches_differ_and_repeat():
    def seeds(seed, epoch):
        sampler = ClassBalancedBatchSampler(np.arange(60) % 6, batch_size=8, per_class=2, seed=seed)
        sampler.set_epoch(epoch)
        return [rows.seed for rows in sampler]

    assert seeds(0, 1) == seeds(0, 1)
    drawn = [*seeds(0, 0), *seeds(0, 1), *seeds(1, 0), *seeds(1, 1)]
    assert len(set(drawn)) == len(drawn)


@given(rows=st.integers(1, 40), batch_size=st.integers(1, 9), processes=st.integers(1, 5))
def test_batches_of_all_rows_are_shared_whole(rows, batch_size, processes):
    one = list(BatchShare(rows, batch_size=batch_size))
    shares = [list(BatchShare(rows, batch_size=batch_size, num_replicas=processes, rank=r)) for r in range(processes)]
    assert [row for batch in one for row in batch] == list(range(rows))
    assert all(shares)
    assert {tuple(batch) for share in shares for batch in share} == {tuple(batch) for batch in one}


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3), st.integers(0, 100))
def test_shuffled_every_image_comes_in_one_batch_of_an_epoch_once_a_view(images, places, views, seed):
    sampler = ShuffledBatchSampler(images, batch_size=places * views, views=views, seed=seed)
    batches = list(sampler)
    assert len(batches) == len(sampler) == -(-images // places)
    for batch in batches:
        assert set(np.unique(batch, return_counts=True)[1]) == {views}
    assert sorted(row for batch in batches for row in batch) == sorted(list(range(images)) * views)
    sizes = [len(batch) // views for batch in batches]
    assert max(sizes) <= places
    assert max(sizes) - min(sizes) <= 1


def test_shuffled_the_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = ShuffledBatchSampler(30, batch_size=8, views=2, seed=seed)
        list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


@given(images=st.integers(12, 60), count=st.sampled_from([2, 3]), views=st.integers(1, 2), epoch=st.integers(0, 3))
def test_shuffled_the_shares_of_the_processes_joined_are_the_batches_of_one(images, count, views, epoch):
    def of(num_replicas: int, rank: int) -> list[list[int]]:
        sampler = ShuffledBatchSampler(images, batch_size=12, views=views, seed=4, num_replicas=num_replicas, rank=rank)
        sampler.set_epoch(epoch)
        return list(sampler)

    shares = [of(count, rank) for rank in range(count)]
    assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == of(1, 0)
    assert all(share for process in shares for share in process)


def test_shuffled_resuming_leaves_out_what_is_done_and_the_rows_not_asked_for_never_come():
    rows = np.arange(1, 40, 2)
    sampler, again = (ShuffledBatchSampler(40, batch_size=6, views=2, rows=rows) for _ in range(2))
    sampler.set_epoch(2)
    again.resume(2, 3)
    whole, rest = list(sampler), list(again)
    assert rest == whole[3:]
    assert [batch.seed for batch in rest] == [batch.seed for batch in whole[3:]]
    assert sorted({row for batch in whole for row in batch}) == rows.tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"views": 0}, ConfigError, "views must be at least 1, got 0"),
        ({"views": 4}, ConfigError, "batch_size must be a multiple of views, got 6 and 4"),
        ({"num_replicas": 4}, ConfigError, "batch_size must be a multiple of num_replicas, got 6 and 4"),
        ({"rank": 1}, ConfigError, "rank must be at least 0 and below num_replicas = 1, got 1"),
        ({"images": 0}, DataError, "there is no image to draw a batch from"),
        ({"images": 1, "num_replicas": 3}, DataError, "a batch would have only 2 images; 3 processes cannot share it"),
    ],
)
def test_shuffled_what_cannot_be_drawn_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ShuffledBatchSampler(**{"images": 12, "batch_size": 6, "views": 2, **arguments})
