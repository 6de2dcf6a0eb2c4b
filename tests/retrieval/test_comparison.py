import numpy as np
import pytest

from dmlkd.errors import UserError
from dmlkd.retrieval import compare
from dmlkd.retrieval.comparison import caveats, in_words

CLASSES = np.repeat(np.arange(30), 8)


def values(shift, seed, *, noise=0.05):
    """Values whose class effects are shared by all methods, as on the same images."""
    shared = np.random.default_rng(99).normal(0.5, 0.2, 30)[CLASSES]
    return shared + shift + np.random.default_rng(seed).normal(0, noise, len(CLASSES))


def test_the_difference_is_that_of_the_means_and_classes_are_counted():
    first, second = values(0, 0), values(0.02, 1)
    result = compare([first], [second], CLASSES)
    assert result.difference == pytest.approx(second.mean() - first.mean())
    means = [(second[c == CLASSES] - first[c == CLASSES]).mean() for c in range(30)]
    assert (result.wins, result.ties, result.losses) == (sum(m > 0 for m in means), 0, sum(m < 0 for m in means))
    swapped = compare([second], [first], CLASSES)
    assert (swapped.wins, swapped.losses) == (result.losses, result.wins)


def test_pairing_finds_a_difference_far_smaller_than_the_spread_between_classes():
    result = compare([values(0, 0)], [values(0.03, 1)], CLASSES)
    assert 0 < result.low < 0.03 < result.high < 0.06  # unpaired, the standard error of each mean is 0.036


def test_equal_runs_tie_everywhere():
    same = values(0, 0)
    result = compare([same], [same], CLASSES)
    assert (result.difference, result.low, result.high, result.ties) == (0, 0, 0, 30)


def test_the_spread_over_seeds_widens_the_interval():
    one = compare([values(0, 0)], [values(0.03, 1)], CLASSES)
    first = [values(shift, seed) for seed, shift in enumerate([-0.1, 0.1, 0])]
    second = [values(shift, 9) for shift in (0.13, -0.07, 0.03)]
    spread = compare(first, second, CLASSES)
    assert spread.high - spread.low > 3 * (one.high - one.low)
    assert spread.runs == (3, 3)


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says():
    covered = 0
    for trial in range(150):
        rng = np.random.default_rng(trial)
        effect = rng.normal(0.02, 0.05, 30)[CLASSES]  # a method helps some classes more than others
        first = values(0, 1000 + trial)
        result = compare([first], [first + effect + rng.normal(0, 0.02, len(first))], CLASSES, resamples=400)
        covered += result.low <= 0.02 <= result.high
    assert 0.87 <= covered / 150 <= 0.99


def test_the_macro_average_weighs_classes_equally():
    classes = np.array([0, 0, 0, 1])
    first, second = [np.array([0.0, 0, 0, 0])], [np.array([1.0, 1, 1, 0])]
    assert compare(first, second, classes).difference == 0.75
    assert compare(first, second, classes, average="macro").difference == 0.5


def test_queries_that_were_left_out_do_not_count_if_they_are_the_same():
    gap = np.where(np.arange(len(CLASSES)) < 8, np.nan, 0)
    result = compare([values(0, 0) + gap], [values(0, 1) + gap], CLASSES)
    assert result.wins + result.ties + result.losses == 29
    with pytest.raises(UserError, match="different queries"):
        compare([values(0, 0) + gap], [values(0, 1)], CLASSES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"second": [np.zeros(3)]}, "different queries: 3 values"),
        ({"first": []}, "at least one run"),
        ({"level": 0}, "level must lie between 0 and 1, got 0"),
        ({"resamples": 0}, "resamples must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, said):
    given = {"first": [values(0, 0)], "second": [values(0, 1)], **arguments}
    with pytest.raises(UserError, match=said):
        compare(given.pop("first"), given.pop("second"), CLASSES, **given)


def test_the_words_claim_a_difference_only_where_the_interval_leaves_out_zero():
    same, better = values(0, 0), values(0.05, 1)
    unclear = compare([same], [values(0, 1)], CLASSES)
    assert "b scores higher than a" in in_words("map@r", ("a", "b"), compare([same], [better], CLASSES))
    assert "a scores higher than b" in in_words("map@r", ("a", "b"), compare([better], [same], CLASSES))
    assert "cannot be said" in in_words("map@r", ("a", "b"), unclear)


def test_the_caveats_name_few_seeds_and_many_intervals():
    assert any("One run of a method" in line for line in caveats([1, 3], 1))
    assert any("only 3 runs" in line for line in caveats([3, 5], 1))
    assert not any("runs" in line for line in caveats([5, 5], 1))
    assert any("Of 20 intervals of 95 %, 1 are expected" in line for line in caveats([5, 5], 20))
