"""BSD against a loop in double precision over many visits, and what is known of its targets."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dmlkd import Batch, Objective, Signals
from dmlkd.distill import EvidenceTeacher, PosteriorMemory, bsd
from dmlkd.distill.evidence import TINY
from dmlkd.training import Term

ROWS, CLASSES = 4, 6
EVERY = list(range(ROWS))


def batch_of(rows: list[int], labels: list[int]) -> Batch:
    return Batch(torch.zeros(len(rows), 1, 1, 1), torch.tensor(labels), torch.tensor(rows))


def said(logits: torch.Tensor) -> Signals:
    return Signals(torch.ones(len(logits), 1), logits=logits)


def drawn(rows: int, seed: int, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)


def naive_posterior(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def naive_start(label: int, c: float) -> list[float]:
    return [c * (k == label) + TINY for k in range(CLASSES)]


def naive_kept(evidence: list[float], top_k: int | None) -> list[float]:
    if top_k is None:
        return evidence
    order = sorted(range(CLASSES), key=lambda k: -evidence[k])
    rest = sum(evidence[k] for k in order[top_k:]) / (CLASSES - top_k)
    return [evidence[k] if k in order[:top_k] else rest for k in range(CLASSES)]


def taught(teacher: EvidenceTeacher, rows: list[int], labels: list[int], logits: torch.Tensor) -> torch.Tensor:
    lesson = teacher.teach(batch=batch_of(rows, labels), student=said(logits), needs=["logits"])
    return lesson.signals[0].logits.softmax(dim=1)


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize(("c", "discount"), [(10.0, 0.9), (1.0, 0.99), (3.0, 1.0), (5.0, 0.0)])
def test_targets_are_those_of_a_double_precision_loop_over_many_visits(c, discount, top_k):
    teacher = EvidenceTeacher(rows=ROWS, classes=CLASSES, label_evidence=c, discount=discount, top_k=top_k)
    labels = [0, 3, 5, 3]
    evidence = [naive_start(label, c) for label in labels]
    for visit in range(400):
        logits = drawn(ROWS, visit)
        targets = taught(teacher, EVERY, labels, logits)
        for row in EVERY:
            p = naive_posterior(logits[row].tolist())
            evidence[row] = [discount * a + b for a, b in zip(evidence[row], p, strict=True)]
            expected = [a / sum(evidence[row]) for a in evidence[row]]
            assert targets[row].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)
            evidence[row] = naive_kept(evidence[row], top_k)
    assert torch.allclose(targets.sum(dim=1), torch.ones(ROWS, dtype=targets.dtype))


def test_half_precision_would_lose_what_late_visits_add():
    errors = {}
    for single in (True, False):
        teacher = EvidenceTeacher(rows=1, classes=2, discount=1.0)
        teacher.means = PosteriorMemory(rows=1, classes=2, single=single)
        for _ in range(3000):
            target = taught(teacher, [0], [0], torch.zeros(1, 2))
        errors[single] = abs(target[0, 0].item() - (10 + 3000 / 2) / 3010)
    assert errors[True] < 1e-5
    assert errors[False] > 1e-2


@pytest.mark.parametrize("visits", [0, 1, 5])
def test_value_and_gradient_are_those_of_the_formula(visits):
    discount, labels = 0.8, [0, 1, 2, 5]
    teacher = EvidenceTeacher(rows=ROWS, classes=CLASSES, label_evidence=4.0, discount=discount)
    objective = Objective(lambda z, y, i: z.sum() * 0, [Term(bsd(), teacher, name="bsd")])
    evidence = [naive_start(label, 4.0) for label in labels]
    for visit in range(visits + 1):
        logits = drawn(ROWS, visit).requires_grad_()
        losses = objective(said(logits), batch_of(EVERY, labels))
        (gradient,) = torch.autograd.grad(losses.total, logits)
        expected = 0.0
        for row in EVERY:
            p, total = naive_posterior(logits[row].tolist()), sum(evidence[row])
            before = [a / total for a in evidence[row]]
            evidence[row] = [discount * a + b for a, b in zip(evidence[row], p, strict=True)]
            target = [a / sum(evidence[row]) for a in evidence[row]]
            expected -= sum(t * math.log(s) for t, s in zip(target, p, strict=True)) / ROWS
            shorter = discount * total / (discount * total + 1)
            slope = [shorter * (s - t) / ROWS for t, s in zip(before, p, strict=True)]
            assert gradient[row].tolist() == pytest.approx(slope, abs=1e-6)
        assert losses.distill["bsd"].item() == pytest.approx(expected, rel=1e-5)


def test_the_first_visit_pulls_to_the_label_alone():
    labels = [0, 1, 2, 5]
    teacher = EvidenceTeacher(rows=ROWS, classes=CLASSES)
    objective = Objective(lambda z, y, i: z.sum() * 0, [Term(bsd(), teacher, name="bsd")])
    logits = drawn(ROWS, 0).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(said(logits), batch_of(EVERY, labels)).total, logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor(labels)), logits)
    torch.testing.assert_close(gradient, 9 / 10 * plain, rtol=1e-4, atol=1e-6)


def test_after_the_start_no_label_is_read():
    teacher, other = (EvidenceTeacher(rows=ROWS, classes=CLASSES) for _ in range(2))
    for visit, labels in enumerate(([0, 1, 2, 3], [5, 4, 0, 0])):
        logits = drawn(ROWS, visit)
        same = torch.equal(taught(teacher, EVERY, [0, 1, 2, 3], logits), taught(other, EVERY, labels, logits))
        assert same


@given(st.integers(1, 60), st.sampled_from([0.5, 0.9, 1.0]))
def test_a_wrong_label_fades_with_the_visits_whatever_is_predicted(visits, discount):
    """Two labels of one image: their targets differ by gamma^n c (onehot - onehot') / s_n."""
    right, wrong = (EvidenceTeacher(rows=1, classes=CLASSES, label_evidence=7.0, discount=discount) for _ in range(2))
    total = 7.0 + CLASSES * TINY
    for visit in range(visits):
        logits = drawn(1, visit)
        targets = [taught(teacher, [0], [label], logits) for teacher, label in ((right, 2), (wrong, 4))]
        total = discount * total + 1
    expected = [0.0] * CLASSES
    expected[2], expected[4] = (sign * discount**visits * 7.0 / total for sign in (1, -1))
    assert (targets[0] - targets[1])[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_target_of_a_steady_prediction_tends_to_it():
    teacher, logits = EvidenceTeacher(rows=1, classes=CLASSES), drawn(1, 0)
    distances = [(taught(teacher, [0], [1], logits) - logits.softmax(dim=1)).abs().sum().item() for _ in range(100)]
    assert distances[-1] < 1e-3
    assert all(b / a == pytest.approx(0.9, abs=0.01) for a, b in pairwise(distances[:20]))


def test_of_an_image_drawn_twice_into_a_batch_the_last_place_is_the_visit():
    twice, once = (EvidenceTeacher(rows=ROWS, classes=CLASSES) for _ in range(2))
    logits = drawn(3, 0)
    both = taught(twice, [1, 0, 1], [3, 2, 3], logits)
    alone = taught(once, [0, 1], [2, 3], logits[1:])
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[0], both[2])
    assert torch.equal(twice.sums, once.sums)
    assert torch.equal(*(taught(t, [1], [3], logits[:1]) for t in (twice, once)))


@pytest.mark.parametrize("limit", [0, 2**20])
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_restored_teacher_goes_on_the_same(limit, top_k):
    teacher, restored = (EvidenceTeacher(rows=ROWS, classes=CLASSES, top_k=top_k, mapped_above=limit) for _ in range(2))
    generator = torch.get_rng_state()
    taught(teacher, [1, 2], [0, 0], drawn(2, 0).requires_grad_())
    restored.load_state_dict(copy.deepcopy(teacher.state_dict()))
    assert torch.equal(*(taught(t, [2, 3], [0, 1], drawn(2, 1)) for t in (teacher, restored)))
    assert torch.equal(torch.get_rng_state(), generator)


BAD = {
    "no evidence": ({"label_evidence": 0}, "label_evidence must be a finite number above 0, got 0"),
    "discount above 1": ({"discount": 1.1}, "discount must be a number from 0 to 1, got 1.1"),
    "no class kept": ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
    "no rows": ({"rows": 0}, "rows must be a whole number of at least 1, got 0"),
    "negative limit": ({"mapped_above": -1}, "mapped_above must be at least 0 bytes, got -1"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        EvidenceTeacher(**{"rows": 2, "classes": 3, **arguments})
