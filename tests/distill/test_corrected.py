"""Distillation corrected for the teacher's errors, against loops over entries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.distill import CorrectedDistillation, CrossEntropy, posterior_divergence

SIZES = st.tuples(st.integers(1, 8), st.integers(2, 6), st.integers(0, 2**20))


def logits(size, classes, seed):
    return 2 * torch.randn(size, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(scores, temperature=1.0):
    powers = [math.exp(s / temperature) for s in scores]
    return [power / sum(powers) for power in powers]


def naive(student, teacher, labels, *, temperature, a, comparison, clip):
    total = 0.0
    for o, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        classes = range(len(o))
        p = [max(value, clip) for value in softmax(t)]
        r = [(c == label) / p[c] - 1 for c in classes]
        if comparison == "squared":
            total += sum((o[c] - t[c] - a * r[c]) ** 2 for c in classes) / len(o)
            continue
        w, q = softmax(t, temperature), softmax(o, temperature)
        total += temperature**2 * sum(w[c] * math.log(w[c] / q[c]) for c in classes)
        first = sum(r[c] * w[c] for c in classes) * sum(w[c] * math.log(q[c]) for c in classes)
        total += a * (first - sum(r[c] * w[c] * math.log(q[c]) for c in classes))
    return total / len(student)


@given(SIZES, st.floats(0.5, 6), st.floats(0, 2), st.sampled_from(["kl", "squared"]), st.sampled_from([0, 0.01, 0.3]))
def test_value_and_gradient_are_those_of_a_loop(sizes, temperature, a, comparison, clip):
    student, teacher = logits(*sizes).requires_grad_(), logits(*sizes[:2], sizes[2] + 1).requires_grad_()
    labels = torch.arange(sizes[0]) % sizes[1]
    method = CorrectedDistillation(temperature=temperature, correction=a, comparison=comparison, clip=clip)
    options = {"temperature": temperature, "a": a, "comparison": comparison, "clip": clip}
    loss = method(student=student, teacher=teacher, labels=labels)
    loss.backward()
    assert loss.item() == pytest.approx(naive(student, teacher, labels, **options), rel=1e-9, abs=1e-10)
    assert teacher.grad is None
    step = 1e-6 * torch.ones_like(student)
    i, j = sizes[2] % sizes[0], sizes[2] % sizes[1]
    shift = torch.zeros_like(student)
    shift[i, j] = step[i, j]
    upper, lower = (naive(student.detach() + s * shift, teacher, labels, **options) for s in (1, -1))
    assert student.grad[i, j].item() == pytest.approx((upper - lower) / 2e-6, rel=1e-4, abs=1e-6)


def test_without_correction_it_is_plain_distillation():
    student, teacher, labels = logits(5, 4, 0), logits(5, 4, 1), torch.tensor([0, 1, 2, 3, 0])
    plain = posterior_divergence(student=student, teacher=teacher, temperature=4.0)
    assert torch.equal(CorrectedDistillation(correction=0)(student=student, teacher=teacher, labels=labels), plain)


def test_at_temperature_1_the_gradient_is_that_of_the_label_whatever_the_teacher_says():
    student, labels = logits(5, 4, 0).requires_grad_(), torch.tensor([0, 1, 2, 3, 0])
    method = CorrectedDistillation(temperature=1, clip=0)
    (found,) = torch.autograd.grad(method(student=student, teacher=logits(5, 4, 1), labels=labels), student)
    (expected,) = torch.autograd.grad(CrossEntropy()(student=student, labels=labels), student)
    assert torch.allclose(found, expected, atol=1e-12)


def test_the_published_corrections_are_the_defaults():
    assert CorrectedDistillation(temperature=5).correction == 0.2
    assert CorrectedDistillation(temperature=5, comparison="squared").correction == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1}, "temperature must be a finite number above 0, got -1"),
        ({"correction": -1}, "correction must be a finite number of at least 0, got -1"),
        ({"comparison": "js"}, "comparison must be one of 'kl', 'squared', got 'js'"),
        ({"clip": 2}, "clip must be a number from 0 to 1, got 2"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        CorrectedDistillation(**arguments)
