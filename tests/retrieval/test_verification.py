import math

import naive_retrieval as naive
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from retrieval_cases import clustered, labelled
from sklearn.metrics import roc_auc_score

from dmlkd.errors import UserError
from dmlkd.retrieval import evaluate, verification

METRICS = ["auroc", "eer", "fnmr@fmr=0.1"]


def rounded(nearness, distance, longest):
    """Similarities as docs/metrics.md says: scaled to -1..1 and rounded to multiples of 2^-20."""
    if distance == "euclidean":
        scaled = -math.sqrt(max(0.0, -nearness)) / (sum(longest) or 1)
    else:
        scaled = nearness / (1 if distance == "cosine" else longest[0] * longest[1] or 1)
    return round(scaled * 2**20)


def pairs_of(z, y, g, h, distance, counted):
    queries, gallery = naive.rows(z, distance), naive.rows(g, distance)
    longest = [max(math.sqrt(math.fsum(v * v for v in row)) for row in part) for part in (queries, gallery)]
    genuine, impostor = [], []
    for a, query in enumerate(queries):
        for b, item in enumerate(gallery):
            if counted(a, b):
                near = rounded(naive.nearness(query, item, distance), distance, longest)
                (genuine if y[a] == h[b] else impostor).append(near)
    return genuine, impostor


@given(labelled(min_rows=3), st.sampled_from(["cosine", "inner"]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_verification_equals_the_double_loop(case, distance, separate):
    z, y = case
    genuine, impostor = pairs_of(z, y, z, y, distance, lambda a, b: separate or a < b)
    assume(genuine and impostor)
    gallery = {"gallery": z, "gallery_labels": y} if separate else {}
    assume(separate or len(np.unique(y)) < len(y))
    got = evaluate(z, y, metrics=METRICS, distance=distance, **gallery)
    assert tuple(got.values()) == pytest.approx(naive.verification(genuine, impostor, 0.1), abs=1e-9)


def test_euclidean_verification_equals_the_double_loop():
    z, y = clustered(40, 3, 5)
    got = evaluate(z, y, metrics=METRICS, distance="euclidean")
    pairs = pairs_of(z, y, z, y, "euclidean", lambda a, b: a < b)
    assert tuple(got.values()) == pytest.approx(naive.verification(*pairs, 0.1), abs=1e-9)


def test_auroc_is_that_of_scikit_learn_and_blocks_do_not_matter(monkeypatch):
    z, y = clustered(300, 8, 12)
    first = evaluate(z, y, metrics=METRICS)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    upper = np.triu_indices(300, 1)
    assert first["auroc"] == pytest.approx(roc_auc_score((y[:, None] == y)[upper], (unit @ unit.T)[upper]), abs=1e-5)
    monkeypatch.setattr(verification, "_PAIRS", 300 * 7)
    order = np.random.default_rng(0).permutation(300)
    assert dict(evaluate(z[order], y[order], metrics=METRICS, backend="torch")) == pytest.approx(dict(first), abs=1e-9)


def test_pairs_of_one_identity_are_not_counted():
    z, y = clustered(60, 4, 6)
    ids = np.arange(60) // 2
    got = evaluate(z, y, metrics=METRICS, query_ids=ids)
    pairs = pairs_of(z, y, z, y, "cosine", lambda a, b: a < b and ids[a] != ids[b])
    assert tuple(got.values()) == pytest.approx(naive.verification(*pairs, 0.1), abs=1e-9)


def test_one_class_has_no_pairs_to_tell_apart():
    with pytest.raises(UserError, match="needs pairs that do not match"):
        evaluate(np.eye(3), [1, 1, 1], metrics=["auroc"])
