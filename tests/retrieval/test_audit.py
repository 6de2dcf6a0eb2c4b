"""Label audits: votes of the nearest neighbours, beside a naive reference; what they find of wrong labels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from retrieval_cases import clustered

from dmlkd.data import noisy_labels
from dmlkd.errors import UserError
from dmlkd.retrieval.audit import LabelAudit, audit_labels, detection

shapes = st.tuples(st.integers(2, 60), st.integers(1, 6), st.integers(1, 70), st.integers(0, 1000))


def naive(z, y, k, temperature):
    """From the definition, an image at a time: score, likelier label, share of the own label, of the likelier one."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    found = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        nearest = sorted(others, key=lambda j: -float(z[i] @ z[j]))[:k]
        weights = np.exp([(z[i] @ z[j] - z[i] @ z[nearest[0]]) / temperature for j in nearest])
        weights /= weights.sum()
        share = {c: sum(w for j, w in zip(nearest, weights, strict=True) if y[j] == c) for c in {*y.tolist()}}
        each = {c: share[c] / max(1, sum(y[j] == c for j in others)) for c in share}
        rest = [c for c in sorted(share) if c != y[i] and share[c] > 0]
        likelier = max(rest, key=lambda c: each[c]) if rest else y[i]
        against = each[likelier] if rest else 0.0
        alone = sum(y == y[i]) == 1
        score = np.nan if alone else (against - each[y[i]]) / (against + each[y[i]])
        found.append((score, likelier, share[y[i]], share[likelier] if rest else 0.0))
    return LabelAudit(*(np.array(column) for column in zip(*found, strict=True)))


def scored(score, share) -> LabelAudit:
    return LabelAudit(np.array(score), np.zeros(len(score), int), np.zeros(len(score)), np.array(share))


scores = st.sampled_from([-1.0, 0.0, 0.3, 1.0, np.nan])


@given(shape=shapes, temperature=st.sampled_from([0.03, 0.2, 5.0]))
def test_it_agrees_with_the_definition(shape, temperature):
    count, classes, k, seed = shape
    rng = np.random.default_rng(seed)
    z, y = rng.standard_normal((count, 5)), rng.integers(classes, size=count) * 3 + 4
    expected, found = naive(z, y, k, temperature), audit_labels(z, y, k=k, temperature=temperature)
    for name in ("score", "own_share", "likelier_share"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-4, nan_ok=True), name
    assert (found.likelier == expected.likelier).mean() > 0.95 or count < 20


def test_blocks_change_nothing(monkeypatch):
    z, y = clustered(100, 8, 10, noise=0.9, seed=3)
    whole = audit_labels(z, y)
    monkeypatch.setattr("dmlkd.retrieval.audit._ROWS", 7)
    for left, right in zip(whole, audit_labels(z, y), strict=True):
        assert (left == right).all()


@given(seed=st.integers(0, 1000), k=st.integers(1, 100))
def test_it_follows_the_rows_and_the_names_of_the_labels(seed, k):
    rng = np.random.default_rng(seed)
    z, y = rng.standard_normal((80, 6)), rng.integers(7, size=80)
    found = audit_labels(z, y, k=k)
    order = rng.permutation(80)
    moved = audit_labels(3 * torch.from_numpy(z[order]), 100 - 2 * y[order], k=k)
    assert moved.score == pytest.approx(found.score[order], abs=1e-4, nan_ok=True)
    assert moved.own_share == pytest.approx(found.own_share[order], abs=1e-4)
    assert ((100 - moved.likelier) // 2 == found.likelier[order]).mean() > 0.9  # near ties may fall either way


@given(sizes=st.lists(st.integers(2, 9), min_size=2, max_size=8), k=st.integers(1, 60), seed=st.integers(0, 1000))
def test_a_set_of_clean_clusters_scores_nothing_positive(sizes, k, seed):
    y = np.repeat(np.arange(len(sizes)), sizes)
    z = np.eye(len(sizes))[y] + 0.05 * np.random.default_rng(seed).uniform(-1, 1, (len(y), len(sizes)))
    for temperature in (0.01, 0.05, 10.0):
        found = audit_labels(z, y, k=k, temperature=temperature)
        assert (found.score <= 1e-9).all()


@given(seed=st.integers(0, 1000))
def test_wrong_labels_in_clean_clusters_come_first_with_the_right_label_named(seed):
    true = np.repeat(np.arange(6), 12)
    z = np.eye(6)[true] + 0.02 * np.random.default_rng(seed).standard_normal((72, 6))
    y = noisy_labels(true, 0.1, kind="symmetric", seed=seed)
    found = audit_labels(z, y)
    wrong = y != true
    assert wrong[found.order()[: wrong.sum()]].all()
    assert (found.likelier[wrong] == true[wrong]).all()
    assert detection(found, wrong) == (wrong.sum(), 1.0, 1.0)


def test_the_size_of_a_class_gives_it_no_advantage():
    """An image between a small class and one that is three times as large is drawn to neither."""
    z = np.concatenate([np.tile([[1.0, 0.0]], (3, 1)), np.tile([[0.0, 1.0]], (9, 1)), [[1.0, 1.0]]])
    y = np.repeat([0, 1, 0], [3, 9, 1])
    assert audit_labels(z, y).score[-1] == pytest.approx(0, abs=1e-5)


def test_an_image_alone_in_its_class_is_not_judged_and_comes_last():
    z, y = clustered(40, 4, 6, noise=0.1, seed=0)
    y[7] = 99
    found = audit_labels(z, y)
    assert np.flatnonzero(np.isnan(found.score)).tolist() == [7]
    assert found.order()[-1] == 7
    assert found.own_share[7] == 0
    assert found.likelier[7] != 99


def test_duplicates_of_an_image_vote_but_the_image_itself_does_not():
    z = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2)
    found = audit_labels(z, np.array([0, 1, 1, 0, 1]), k=1)
    assert found.own_share[0] == 0
    assert found.likelier[0] == 1
    alone = audit_labels(z[2:], np.array([0, 0, 0]))
    assert alone.score.tolist() == [-1, -1, -1]
    assert alone.likelier.tolist() == [0, 0, 0]
    assert alone.likelier_share.tolist() == [0, 0, 0]


def test_equal_scores_are_ordered_by_the_share_of_the_likelier_label():
    assert scored([1, np.nan, 1, 0.5], [0.2, 0.9, 0.4, 0.9]).order().tolist() == [2, 0, 3, 1]


@given(st.lists(st.tuples(scores, st.floats(0, 1), st.booleans()), min_size=1, max_size=30, unique_by=lambda c: c[1]))
def test_detection_is_precision_in_the_order_of_the_table_and_the_area_under_the_roc(cases):
    score, share, wrong = zip(*cases, strict=True)
    judged = [case for case in cases if case[0] == case[0]]
    count = sum(w for *_, w in judged)
    if count in (0, len(judged)):
        with pytest.raises(UserError, match="nothing to tell apart"):
            detection(scored(score, share), wrong)
        return
    first = sorted(judged, key=lambda case: (-case[0], -case[1]))[:count]
    found = detection(scored(score, share), wrong)
    assert found.precision == pytest.approx(sum(w for *_, w in first) / count)
    pairs = [(bad > good) + (bad == good) / 2 for bad, _, w in judged if w for good, _, v in judged if not v]
    assert found.auroc == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be above 0, got 0"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"labels": np.zeros(9)}, "labels must be integers"),
        ({"labels": np.zeros(8, int)}, r"labels must have shape \(9,\)"),
        ({"embeddings": np.zeros((9, 2))}, "embeddings: row 0 is zero"),
        ({"embeddings": np.ones((1, 2)), "labels": np.zeros(1, int)}, "a single embedding has no neighbours"),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        audit_labels(**{"embeddings": np.ones((9, 2)), "labels": np.zeros(9, int), **arguments})
