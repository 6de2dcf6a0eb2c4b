"""Agreement of two models, beside double loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retrieval_cases import clustered
from scipy.stats import spearmanr

from dmlkd.errors import UserError
from dmlkd.retrieval import fidelity as module
from dmlkd.retrieval.fidelity import fidelity

TEACHER, _ = clustered(70, 6, 7, noise=0.6)
STUDENT = np.hstack([TEACHER[:, :4], np.random.default_rng(5).standard_normal((70, 5))]).astype(np.float32)
LOGITS = np.random.default_rng(6).standard_normal((2, 70, 5)) * 3


def unit(z):
    z = z.astype(np.float64)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def nearest(z, i, k):
    return set(sorted((j for j in range(len(z)) if j != i), key=lambda j: -float(z[i] @ z[j]))[:k])


def test_every_measure_equals_the_double_loop():
    got = fidelity(teacher=TEACHER, student=STUDENT, neighbours=4, teacher_logits=LOGITS[0], student_logits=LOGITS[1])
    a, b = unit(TEACHER), unit(STUDENT)
    shared = [len(nearest(a, i, 4) & nearest(b, i, 4)) / 4 for i in range(70)]
    assert got.neighbours == pytest.approx(np.mean(shared), abs=1e-12)
    assert got.nearest == pytest.approx(np.mean([nearest(a, i, 1) == nearest(b, i, 1) for i in range(70)]), abs=1e-12)
    pairs = list(itertools.combinations(range(70), 2))
    similarities = [[float(z[i] @ z[j]) for i, j in pairs] for z in (a, b)]
    assert got.spearman == pytest.approx(spearmanr(*similarities).statistic, abs=1e-4)
    centre = np.eye(70) - 1 / 70
    k, m = (centre @ z @ z.T @ centre for z in (a, b))
    assert got.cka == pytest.approx((k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum()), abs=1e-6)
    posteriors = [np.exp(s) / np.exp(s).sum(axis=1, keepdims=True) for s in LOGITS]
    assert got.top1 == np.mean(
        [max(range(5), key=p.__getitem__) == max(range(5), key=q.__getitem__) for p, q in zip(*posteriors, strict=True)]
    )
    divergence = [sum(t * math.log(t / s) for t, s in zip(p, q, strict=True)) for p, q in zip(*posteriors, strict=True)]
    assert got.kl == pytest.approx(np.mean(divergence), rel=1e-9)


def test_blocks_do_not_matter(monkeypatch):
    first = fidelity(teacher=TEACHER, student=STUDENT, teacher_logits=LOGITS[0], student_logits=LOGITS[1])
    monkeypatch.setattr(module, "_ROWS", 9)
    again = fidelity(teacher=TEACHER, student=STUDENT, teacher_logits=LOGITS[0], student_logits=LOGITS[1])
    assert again == pytest.approx(first, abs=1e-12)


def test_a_model_agrees_with_itself():
    got = fidelity(teacher=TEACHER, student=TEACHER, teacher_logits=LOGITS[0], student_logits=LOGITS[0] + 3)
    assert got == pytest.approx((1, 1, 1, 1, 1, 0), abs=1e-9)


@given(seed=st.integers(0, 99))
def test_turning_and_scaling_the_student_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    first = fidelity(teacher=TEACHER, student=STUDENT)
    turned = fidelity(teacher=TEACHER, student=3.7 * STUDENT.astype(np.float64) @ turn)
    # float32 rows of a turned student are other roundings: what is nearly equal may change places.
    assert turned == pytest.approx(first._replace(top1=None), abs=2e-3)


@given(seed=st.integers(0, 99))
def test_measures_stay_in_their_range_and_do_not_depend_on_the_order_of_images(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((30, 3)), rng.standard_normal((30, 5))
    order = rng.permutation(30)
    got = fidelity(teacher=a, student=b, neighbours=5)
    assert 0 <= got.nearest <= 1
    assert 0 <= got.neighbours <= 1
    assert 0 <= got.cka <= 1
    assert -1 <= got.spearman <= 1
    assert fidelity(teacher=a[order], student=b[order], neighbours=5) == pytest.approx(got, abs=1e-9)


def test_models_that_have_nothing_in_common_agree_by_chance_alone():
    rng = np.random.default_rng(0)
    got = fidelity(teacher=rng.standard_normal((2000, 8)), student=rng.standard_normal((2000, 8)), pairs=100_000)
    assert got.neighbours < 0.02
    assert abs(got.spearman) < 0.02
    assert got.cka < 0.02


def test_drawn_pairs_come_near_all_pairs_and_are_drawn_by_the_seed():
    z = np.random.default_rng(1).standard_normal((400, 8))
    student = z + np.random.default_rng(2).standard_normal((400, 8))
    every = fidelity(teacher=z, student=student, pairs=None).spearman
    drawn = fidelity(teacher=z, student=student, pairs=20_000).spearman
    assert drawn == pytest.approx(every, abs=0.02)
    assert drawn != every
    assert drawn == fidelity(teacher=z, student=student, pairs=20_000).spearman
    assert drawn != fidelity(teacher=z, student=student, pairs=20_000, seed=1).spearman


def test_equal_rows_of_one_model_have_no_rank_correlation_and_no_alignment():
    flat = np.tile(np.array([[0.3, 0.1, 0.7]]), (70, 1))
    got = fidelity(teacher=TEACHER, student=flat)
    assert math.isnan(got.cka)
    assert math.isnan(got.spearman)


WRONG = {
    "rows": ({"student": STUDENT[:69]}, "the same images, got 70 and 69 rows"),
    "few images": ({"teacher": TEACHER[:2], "student": STUDENT[:2]}, "at least 3 images, got 2"),
    "neighbours": ({"neighbours": 70}, "neighbours must be at least 1 and less than the 70 images, got 70"),
    "no neighbours": ({"neighbours": 0}, "got 0"),
    "pairs": ({"pairs": 1}, "pairs must be at least 2, got 1"),
    "distance": ({"distance": "cosin"}, "did you mean 'cosine'"),
    "one posterior": ({"teacher_logits": LOGITS[0]}, "of both models or of neither"),
    "other classes": (
        {"teacher_logits": LOGITS[0], "student_logits": LOGITS[1][:, :3]},
        "must be (70, C) of both models, got (70, 5) of the teacher and (70, 3)",
    ),
    "posterior not finite": (
        {"teacher_logits": LOGITS[0], "student_logits": LOGITS[1] * np.nan},
        "class scores are not finite",
    ),
    "embedding not finite": ({"student": STUDENT * np.nan}, "student: row 0 is not finite"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_said(arguments, said):
    with pytest.raises(UserError) as refused:
        fidelity(**{"teacher": TEACHER, "student": STUDENT, **arguments})
    assert said in str(refused.value)
