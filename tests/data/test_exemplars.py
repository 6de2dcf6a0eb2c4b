"""Herding against a loop written from the formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.data.exemplars import herding_order


def unit(size, dim, seed):
    vectors = np.random.default_rng(seed).normal(size=(size, dim)) + 0.5
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def distance(vectors, chosen):
    """Of the mean of some to the mean of all, in plain loops."""
    lost = 0.0
    for column in zip(*vectors, strict=True):
        lost += (sum(column) / len(column) - sum(column[i] for i in chosen) / len(chosen)) ** 2
    return lost**0.5


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 14), st.integers(0, 999))
def test_no_other_image_would_bring_the_running_mean_closer(count, dim, size, seed):
    vectors = unit(count, dim, seed)
    chosen = herding_order(vectors, size).tolist()
    assert len(chosen) == len(set(chosen)) == min(size, count)
    for place, own in enumerate(chosen):
        others = [distance(vectors.tolist(), [*chosen[:place], i]) for i in range(count) if i not in chosen[:place]]
        assert distance(vectors.tolist(), [*chosen[:place], own]) <= min(others) + 1e-12


def test_a_smaller_memory_is_the_beginning_of_a_larger_one():
    vectors = unit(30, 8, 0)
    assert herding_order(vectors, 20)[:7].tolist() == herding_order(vectors, 7).tolist()


def test_the_mean_of_a_few_is_nearer_to_the_class_mean_than_that_of_the_first_few():
    vectors = unit(60, 8, 1)
    chosen = vectors[herding_order(vectors, 5)].mean(axis=0)
    assert np.linalg.norm(chosen - vectors.mean(axis=0)) < np.linalg.norm(
        vectors[:5].mean(axis=0) - vectors.mean(axis=0)
    )


def test_of_equal_images_the_first_is_chosen_and_none_twice():
    assert herding_order(np.ones((4, 2)), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("embeddings", "size", "message"),
    [
        (np.ones((2, 2)), 0, "size must be at least 1, got 0"),
        (np.ones(3), 1, r"embeddings must be \(N, D\) of at least one image, got \(3,\)"),
        (np.ones((0, 3)), 1, r"of at least one image, got \(0, 3\)"),
    ],
)
def test_bad_arguments_are_refused_by_name(embeddings, size, message):
    with pytest.raises(ValueError, match=message):
        herding_order(embeddings, size)
