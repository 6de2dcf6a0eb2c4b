"""Splits within classes, and super-classes to train on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.config import DataConfig
from dmlkd.data import ImageTable, digits, merged_classes, split_images
from dmlkd.data.table import strings
from dmlkd.errors import ConfigError, DataError
from dmlkd.training.building_data import build_data

HALVES = {"low": (0, 1, 2, 3, 4), "high": (5, 6, 7, 8, 9)}


def table_of(labels: list[int]) -> ImageTable:
    names = strings([f"class {label}" for label in np.unique(labels)])
    return ImageTable(strings(map(str, range(len(labels)))), np.array(labels), strings(["train"] * len(labels)), names)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.floats(0.05, 0.95))
def test_the_last_share_of_each_classs_rows_is_for_testing(labels, share):
    labels = labels + labels + labels  # at least 3 of each
    split = split_images(table_of(labels), share).split
    for label in set(labels):
        parts = [str(part) for part, other in zip(split, labels, strict=True) if other == label]
        trained = min(max(round((1 - share) * len(parts)), 1), len(parts) - 1)
        assert parts == ["train"] * trained + ["test"] * (len(parts) - trained)


def test_training_is_on_superclasses_and_the_test_on_all_classes():
    data = build_data(
        DataConfig(
            name="digits", image_size=8, transform="plain", validation=0, test_share=0.5, seen_classes=True,
            superclasses=HALVES, noise=0.1,
        ),
        seed=0,
    )  # fmt: skip
    table = split_images(digits(), 0.5)
    train, test = table.of_split("train"), table.of_split("test")
    assert set(data.test.labels) == set(range(10))
    assert np.array_equal(data.test.labels, test.labels)
    assert np.array_equal(data.true_labels, (train.labels >= 5).astype(int))
    assert data.counts()["train"] == {"images": len(train), "classes": 2, "wrong_labels": round(0.1 * len(train))}
    assert len(train) + len(test) == 1797
    assert abs(len(train) - len(test)) <= 10


def test_validation_is_on_the_classes_too():
    data = build_data(
        DataConfig(
            name="digits", image_size=8, transform="plain", validation=0.4, superclasses={"a": (0, 1), "b": (2, 3, 4)}
        ),
        seed=0,
    )
    assert set(data.train.labels) == {0, 1}
    assert len(set(data.val.labels)) == 2
    assert set(data.test.labels) == {5, 6, 7, 8, 9}


def test_a_split_within_classes_needs_seen_classes_to_be_allowed_whatever_they_are_trained_as():
    with pytest.raises(DataError, match=r"10 classes are both trained on and tested.*data\.seen_classes"):
        build_data(DataConfig(name="digits", image_size=8, test_share=0.5, superclasses=HALVES), seed=0)


def test_classes_are_merged_by_name_or_id_and_the_names_go_with_them():
    merged = merged_classes(table_of([7, 3, 7, 9]), {"b": ("class 9",), "a": (3, "class 7"), "none": (100,)})
    assert merged.labels.tolist() == [1, 1, 1, 0]
    assert merged.class_names.tolist() == ["b", "a"]


WRONG = {
    "twice": (lambda: merged_classes(table_of([0, 1]), {"a": (0, 1), "b": (1,)}), "class 1 is in two superclasses"),
    "in none": (
        lambda: merged_classes(table_of([0, 1]), {"a": (0,), "b": (2,)}),
        "class 'class 1' is in no superclass",
    ),
    "one": (lambda: merged_classes(table_of([0, 1]), {"a": (0, 1)}), "of one superclass; at least 2"),
    "share 1": (lambda: split_images(table_of([0, 0]), 1.0), "test_share must be above 0 and below 1, got 1.0"),
    "one image": (lambda: split_images(table_of([0, 0, 1]), 0.5), "class 'class 1' has but one image"),
    "two splits": (
        lambda: build_data(DataConfig(name="digits", test_share=0.5, test_domain="x"), seed=0),
        "test_domain and test_share split the images in two ways",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises((ConfigError, DataError), match=message):
        make()
