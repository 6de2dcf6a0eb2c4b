"""Label noise: as many wrong labels as asked for, from the same classes, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.data import noisy_labels
from dmlkd.errors import ConfigError, DataError

labels_of_classes = st.lists(st.sampled_from([2, 5, 7, 2**40]), min_size=2, max_size=60).filter(
    lambda x: len(set(x)) > 1
)


@given(
    labels=labels_of_classes,
    fraction=st.floats(0, 0.99),
    kind=st.sampled_from(["symmetric", "pair"]),
    seed=st.integers(0, 99),
)
def test_as_many_labels_are_wrong_as_asked_for(labels, fraction, kind, seed):
    labels = np.array(labels)
    noisy = noisy_labels(labels, fraction, kind=kind, seed=seed)
    assert (noisy != labels).sum() == round(fraction * len(labels))
    assert set(noisy) <= set(labels)
    assert np.array_equal(noisy, noisy_labels(labels, fraction, kind=kind, seed=seed))


def test_pair_noise_takes_the_next_class_and_the_first_after_the_last():
    labels = np.repeat([2, 5, 9], 100)
    noisy = noisy_labels(labels, 0.5, kind="pair", seed=0)
    wrong = noisy != labels
    assert {(int(a), int(b)) for a, b in zip(labels[wrong], noisy[wrong], strict=True)} == {(2, 5), (5, 9), (9, 2)}


def test_symmetric_noise_is_even_over_the_other_classes():
    labels = np.repeat(np.arange(5), 2000)
    noisy = noisy_labels(labels, 0.8, kind="symmetric", seed=0)
    counts = np.bincount(noisy[(labels == 0) & (noisy != 0)], minlength=5)[1:]
    assert counts.min() > 0.85 * counts.mean()
    assert counts.max() < 1.15 * counts.mean()


def test_another_seed_makes_others_wrong():
    labels = np.repeat(np.arange(5), 20)
    first, second = (noisy_labels(labels, 0.3, kind="pair", seed=s) for s in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("labels", "fraction", "kind", "error", "message"),
    [
        ([1, 2], 1.0, "pair", ConfigError, "noise must be at least 0 and below 1, got 1.0"),
        ([1, 2], -0.1, "pair", ConfigError, "noise must be at least 0 and below 1, got -0.1"),
        ([1, 2], 0.5, "odd", ConfigError, "noise_kind must be 'symmetric' or 'pair', got 'odd'"),
        ([1, 1], 0.5, "pair", DataError, "at least 2 classes"),
    ],
)
def test_what_cannot_be_is_refused(labels, fraction, kind, error, message):
    with pytest.raises(error, match=message):
        noisy_labels(np.array(labels), fraction, kind=kind, seed=0)
