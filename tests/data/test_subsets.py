"""Folds of the images and tasks of the classes: whole, even, repeatable, and with rows and labels that stay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.config import load_config
from dmlkd.data import ClassBalancedBatchSampler
from dmlkd.data.subsets import class_tasks, image_folds
from dmlkd.errors import ConfigError, DataError
from dmlkd.training.building import build
from dmlkd.training.building_data import build_data


@given(st.lists(st.integers(0, 6), min_size=5, max_size=60), st.integers(2, 5), st.integers(0, 9))
def test_folds_are_even_in_all_and_within_each_class(labels, folds, seed):
    labels = np.array(labels)
    found = image_folds(labels, folds, seed=seed)
    for part in (slice(None), *(labels == label for label in np.unique(labels))):
        sizes = np.bincount(found[part], minlength=folds)
        assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(found, image_folds(labels, folds, seed=seed))


def test_another_seed_gives_other_folds():
    labels = np.repeat(np.arange(5), 20)
    assert not np.array_equal(image_folds(labels, 4, seed=0), image_folds(labels, 4, seed=1))


@given(st.integers(4, 40), st.integers(2, 5), st.integers(0, 9))
def test_tasks_have_whole_classes_and_as_many_of_them(classes, tasks, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes) * 3 + 1, 2))
    if classes < 2 * tasks:
        with pytest.raises(
            DataError, match=rf"data.tasks = {tasks} needs 2 training classes each, there are {classes}"
        ):
            class_tasks(labels, tasks, seed=seed)
        return
    found = class_tasks(labels, tasks, seed=seed)
    of_class = [set(found[labels == label].tolist()) for label in np.unique(labels)]
    assert all(len(own) == 1 for own in of_class)
    sizes = np.bincount([own.pop() for own in of_class], minlength=tasks)
    assert sizes.max() - sizes.min() <= 1


def test_more_folds_than_images_are_refused():
    with pytest.raises(DataError, match=r"data\.image_folds = 3 needs as many training images, there are 2"):
        image_folds(np.array([0, 1]), 3, seed=0)


@pytest.mark.parametrize("replacement", [False, True])
def test_batches_of_some_rows_hold_only_those(replacement):
    labels = np.repeat(np.arange(6), 10)
    rows = np.flatnonzero(np.arange(60) % 3 > 0)
    sampler = ClassBalancedBatchSampler(labels, batch_size=8, per_class=2, replacement=replacement, rows=rows)
    drawn = [row for batch in sampler for row in batch]
    assert drawn
    assert set(drawn) <= set(rows.tolist())
    if not replacement:
        assert len(drawn) == len(set(drawn)) > 30
        for batch in sampler:
            assert sorted(np.bincount(labels[batch], minlength=6)) == [0, 0, 2, 2, 2, 2]


def configured(configs, *overrides):
    return load_config(configs / "digits.yaml", ["data.image_size=8", "model.backbone_args.width=4", *overrides])[0]


def test_a_fold_is_left_out_while_rows_and_labels_stay_those_of_the_whole(configs):
    whole = build_data(configured(configs).data, seed=0)
    left_out = []
    for fold in range(3):
        config = configured(configs, "data.image_folds=3", f"data.image_fold={fold}")
        parts = build(config)
        assert np.array_equal(parts.data.train.targets, whole.train.targets)
        assert np.array_equal(parts.data.train.paths, whole.train.paths)
        drawn = {row for batch in parts.sampler for row in batch}
        assert not drawn & set(parts.data.left_out.tolist())
        assert len(drawn) > 480
        assert parts.data.counts()["train"] == {"images": len(parts.data.trained), "classes": 5}
        left_out.append(parts.data.left_out)
    assert np.array_equal(np.sort(np.concatenate(left_out)), np.arange(len(whole.train)))


def test_without_a_fold_all_are_trained_on(configs):
    data = build_data(configured(configs, "data.image_folds=3").data, seed=0)
    assert data.trained is None
    assert len(data.left_out) == 0


def test_a_task_draws_from_its_classes_and_keeps_their_numbers(configs):
    seen = []
    for task in range(2):
        parts = build(configured(configs, "data.tasks=2", f"data.task={task}", "train.batch_size=32"))
        own = {int(parts.data.train.targets[row]) for batch in parts.sampler for row in batch}
        assert parts.data.counts()["train"]["classes"] == len(own)
        seen.append(own)
    assert seen[0] | seen[1] == set(range(5))
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["data.image_folds=3", "data.image_fold=3"], r"data\.image_fold: must be from 0 to data\.image_folds - 1 = 2"),
        (["data.image_fold=0"], r"data\.image_fold: needs data\.image_folds, which says of how many"),
        (["data.tasks=2", "data.task=5"], r"data\.task: must be from 0 to data\.tasks - 1 = 1, got 5"),
        (["data.folds=3", "data.fold=3"], r"data\.fold: must be from 0 to data\.folds - 1 = 2, got 3"),
        (["data.fold=1"], r"data\.fold: needs data\.folds"),
    ],
)
def test_a_part_that_is_none_is_refused(configs, override, message):
    with pytest.raises(ConfigError, match=message):
        configured(configs, *override)
