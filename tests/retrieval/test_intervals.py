import numpy as np
import pytest
from retrieval_cases import clustered

from dmlkd.errors import UserError
from dmlkd.retrieval import bootstrap_interval, evaluate
from dmlkd.retrieval.scores import mean


def test_whole_classes_are_drawn():
    """Fifty queries of a class that all agree are one piece of evidence, not fifty."""
    values = np.repeat(np.random.default_rng(0).integers(2, size=20).astype(float), 50)
    classes = np.repeat(np.arange(20), 50)
    low, high = bootstrap_interval(values, classes)
    alone_low, alone_high = bootstrap_interval(values, np.arange(1000))
    assert high - low > 4 * (alone_high - alone_low)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(40), 5)
    covered = 0
    for trial in range(200):
        means = rng.normal(0.5, 0.1, 40)
        low, high = bootstrap_interval(means[classes] + rng.normal(0, 0.1, 200), classes, resamples=300, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_missing_values_are_not_drawn_and_the_seed_decides():
    values, classes = np.array([1.0, np.nan, 0, 1]), np.array([0, 0, 1, 2])
    there = ~np.isnan(values)
    assert bootstrap_interval(values, classes, seed=4) == bootstrap_interval(values[there], classes[there], seed=4)


def test_scores_give_intervals_around_their_means():
    z, y = clustered(200, 5, 12)
    for average in ("micro", "macro"):
        scores = evaluate(z, y, metrics=["recall@1"], average=average)
        low, high = scores.interval("recall@1")
        assert low < scores["recall@1"] < high


@pytest.mark.parametrize("arguments", [{"level": 1.0}, {"resamples": 0}, {"values": np.array([np.nan])}])
def test_bad_numbers_are_refused(arguments):
    with pytest.raises(UserError):
        bootstrap_interval(**{"values": np.ones(1), "clusters": np.zeros(1, int), **arguments})


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_means_do_not_depend_on_the_order_to_the_last_bit(average):
    rng = np.random.default_rng(0)
    values, classes = rng.random(5000), rng.integers(70, size=5000)
    order = rng.permutation(5000)
    assert mean(values, classes, average) == mean(values[order], classes[order], average)
