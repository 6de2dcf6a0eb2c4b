"""Gradient-filtered distillation against a loop over images; which images the filter leaves out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.distill import GradientFilteredDistillation, posterior_divergence

SIZES = st.tuples(st.integers(1, 9), st.integers(2, 6), st.integers(0, 2**20))


def scores(size, classes, seed):
    return 3 * torch.randn(size, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_posterior(row, temperature):
    powers = [math.exp(score / temperature) for score in row.detach().tolist()]
    return [power / sum(powers) for power in powers]


@given(SIZES, st.floats(0.3, 8))
def test_value_and_gradient_are_those_of_a_loop_over_images(sizes, temperature):
    student, teacher = scores(*sizes).requires_grad_(), scores(*sizes[:2], sizes[2] + 1).requires_grad_()
    labels = torch.arange(sizes[0]) % sizes[1]
    loss = GradientFilteredDistillation(temperature=temperature)(student=student, teacher=teacher, labels=labels)
    loss.backward()
    expected, gradient = 0.0, torch.zeros_like(student)
    for i, label in enumerate(labels.tolist()):
        p, q = naive_posterior(student[i], temperature), naive_posterior(teacher[i], temperature)
        if p[label] >= q[label]:
            continue
        expected += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        for c in range(sizes[1]):
            gradient[i, c] = temperature * (p[c] - q[c]) / len(labels)
    assert loss.item() == pytest.approx(temperature**2 * expected / len(labels), rel=1e-8, abs=1e-11)
    assert torch.allclose(student.grad, gradient, rtol=1e-8, atol=1e-11)
    assert teacher.grad is None


def test_no_image_has_the_score_of_its_label_lowered_and_some_would_without_the_filter():
    student, teacher, labels = scores(40, 5, 0).requires_grad_(), scores(40, 5, 1), torch.arange(40) % 5
    filtered = GradientFilteredDistillation(temperature=2)(student=student, teacher=teacher, labels=labels)
    plain = posterior_divergence(student=student, teacher=teacher, temperature=2)
    with_filter, without = (
        torch.autograd.grad(loss, student)[0].gather(1, labels[:, None]) for loss in (filtered, plain)
    )
    assert (with_filter <= 0).all()
    assert (without > 0).any()
    assert torch.equal(with_filter[without < 0], without[without < 0])


def test_a_student_ahead_of_its_teacher_everywhere_is_left_alone():
    teacher, labels = scores(6, 4, 0), torch.arange(6) % 4
    student = teacher.scatter_add(1, labels[:, None], torch.full((6, 1), 0.1, dtype=torch.float64)).requires_grad_()
    loss = GradientFilteredDistillation()(student=student, teacher=teacher, labels=labels)
    loss.backward()
    assert loss == 0
    assert (student.grad == 0).all()


BAD = {
    "no temperature": (lambda: GradientFilteredDistillation(temperature=0), "temperature must be .* above 0, got 0"),
    "other classes": (
        lambda: GradientFilteredDistillation()(
            student=torch.zeros(2, 3), teacher=torch.zeros(2, 4), labels=torch.zeros(2, dtype=torch.long)
        ),
        "same images and classes",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
