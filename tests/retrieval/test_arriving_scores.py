"""Scores over tasks against loops, and an old gallery searched by new queries."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dmlkd.errors import UserError
from dmlkd.retrieval import evaluate
from dmlkd.retrieval.arriving import cross_search, cross_test, forgetting, task_means


@given(st.integers(1, 5).flatmap(lambda t: arrays.arrays(float, (t, t), elements=st.floats(0, 1))))
def test_forgetting_is_that_of_a_loop_over_earlier_tasks(scores):
    lost = []
    for task in range(len(scores) - 1):
        best = max(scores[after][task] for after in range(task, len(scores)) if after < len(scores) - 1)
        lost.append(best - scores[-1][task])
    if not lost:
        assert math.isnan(forgetting(scores))
    else:
        assert forgetting(scores) == pytest.approx(sum(lost) / len(lost))


def test_a_task_is_not_held_to_what_it_scored_before_it_was_learned():
    assert forgetting(np.array([[0.5, 0.9], [0.5, 0.2]])) == 0


def test_a_step_on_which_nothing_is_lost_and_one_is_gained_is_negative():
    assert forgetting(np.array([[0.5, 0.0, 0.0], [0.5, 0.6, 0.0], [0.7, 0.6, 0.1]])) == pytest.approx(-0.1)


@pytest.mark.parametrize("shape", [(3, 2), (0, 0), (3,)])
def test_scores_of_too_few_tasks_are_refused(shape):
    with pytest.raises(ValueError, match=r"scores must be \(T, T or more\)"):
        forgetting(np.zeros(shape))


def test_means_are_those_of_the_queries_of_each_task():
    values = np.array([1.0, 0.0, 0.5, np.nan, 1.0])
    assert task_means(values, np.array([0, 0, 2, 2, 2])).tolist()[::2] == [0.5, 0.75]
    assert np.isnan(task_means(values, np.array([0, 0, 2, 2, 2]))[1])


def drawn(seed, size=30, dim=4):
    return np.random.default_rng(seed).normal(size=(size, dim)).astype(np.float32)


LABELS = np.arange(30) % 6


def naive_recall(queries, gallery, labels, gallery_labels, *, same):
    found = []
    for i, query in enumerate(queries):
        best, right = -2.0, False
        for j, item in enumerate(gallery):
            if same and i == j:
                continue
            cosine = float(query @ item / np.linalg.norm(query) / np.linalg.norm(item))
            if cosine > best:
                best, right = cosine, labels[i] == gallery_labels[j]
        found.append(right)
    return sum(found) / len(found)


def test_each_of_the_three_searches_is_a_loop_over_queries():
    old, new = drawn(0), drawn(0) + 0.4 * drawn(1)
    found = cross_test(old=old, new=new, labels=LABELS, metrics=("recall@1",))
    for scores, queries, gallery in ((found.old, old, old), (found.new, new, new), (found.cross, new, old)):
        assert scores["recall@1"] == pytest.approx(naive_recall(queries, gallery, LABELS, LABELS, same=True))


def test_with_a_gallery_of_its_own_the_old_one_is_searched():
    old, new = drawn(0), drawn(1)
    galleries = {"old_gallery": drawn(2, 20), "new_gallery": drawn(3, 20)}
    labels = np.arange(20) % 6
    found = cross_test(old=old, new=new, labels=LABELS, **galleries, gallery_labels=labels, metrics=("recall@1",))
    expected = naive_recall(new, galleries["old_gallery"], LABELS, labels, same=False)
    assert found.cross["recall@1"] == pytest.approx(expected)
    assert found.new["recall@1"] == pytest.approx(
        naive_recall(new, galleries["new_gallery"], LABELS, labels, same=False)
    )


def test_the_same_model_is_compatible_with_itself_and_a_turned_one_is_not():
    old = drawn(0) + 3 * np.eye(6, 4, dtype=np.float32)[LABELS]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0].astype(np.float32)
    same, turned = (cross_test(old=old, new=new, labels=LABELS) for new in (old, old @ turn))
    assert dict(same.cross) == dict(same.old) == dict(same.new)
    assert turned.new["map@r"] == pytest.approx(turned.old["map@r"])
    assert turned.cross["map@r"] < turned.old["map@r"] - 0.1


def test_the_gain_is_the_share_that_needs_no_new_gallery():
    old = drawn(0)
    new = old + 3 * np.eye(6, 4, dtype=np.float32)[LABELS]
    found = cross_test(old=old, new=new, labels=LABELS, metrics=("recall@1",))
    a, b, c = (scores["recall@1"] for scores in found)
    assert b > a
    assert found.gain("recall@1") == pytest.approx((c - a) / (b - a))
    assert math.isnan(found._replace(new=found.old).gain("recall@1"))


def test_other_dimensions_are_refused_in_one_line():
    with pytest.raises(
        UserError, match="new model's embeddings have 4 dimensions and the old gallery's 3: they cannot"
    ):
        cross_search(new=drawn(0), old=drawn(0, dim=3), labels=LABELS)


def test_the_arguments_are_those_of_evaluate():
    scores = evaluate(**cross_search(new=drawn(0), old=drawn(0), labels=LABELS), metrics=["recall@1"])
    assert scores["recall@1"] == evaluate(drawn(0), LABELS, metrics=["recall@1"])["recall@1"]
