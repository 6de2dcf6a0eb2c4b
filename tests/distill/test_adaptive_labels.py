"""Adaptive label regularisation: both losses against loops over entries, who learns from which, facts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.distill import AdaptiveLabels, residual_divergence
from dmlkd.signals import Batch, Signals

SIZES = st.tuples(st.integers(1, 8), st.integers(3, 7), st.integers(0, 2**20))


def drawn(size, classes, seed, scale=3.0):
    return scale * torch.randn(size, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_posterior(scores, left_out=None, temperature=1.0):
    powers = [0.0 if c == left_out else math.exp(s / temperature) for c, s in enumerate(scores.tolist())]
    return [power / sum(powers) for power in powers]


def naive_losses(student, matrix, labels, temperature):
    for_student = for_residual = 0.0
    for scores, y in zip(student, labels.tolist(), strict=True):
        q, r = naive_posterior(matrix[y], y), naive_posterior(scores, y, temperature)
        wrong = [c for c in range(len(q)) if c != y]
        for_student += temperature**2 * sum(q[c] * math.log(q[c] / r[c]) for c in wrong)
        for_residual += (1 - naive_posterior(scores)[y]) * sum(r[c] * math.log(r[c] / q[c]) for c in wrong)
    return for_student / len(student), for_residual / len(student)


@given(SIZES, st.floats(0.3, 8))
def test_both_losses_are_those_of_loops_over_images_and_wrong_classes(sizes, temperature):
    size, classes, seed = sizes
    student, matrix, labels = (
        drawn(size, classes, seed),
        drawn(classes, classes, seed + 1),
        torch.arange(size) % classes,
    )
    found = residual_divergence(student=student, residual=matrix[labels], labels=labels, temperature=temperature)
    expected = naive_losses(student, matrix, labels, temperature)
    assert [loss.item() for loss in found] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(SIZES, st.floats(0.3, 8))
def test_each_side_has_the_gradient_of_its_own_loss_with_the_other_fixed(sizes, temperature):
    size, classes, seed = sizes
    student, labels = drawn(size, classes, seed).requires_grad_(), torch.arange(size) % classes
    method = AdaptiveLabels(classes=classes, temperature=temperature).double()
    with torch.no_grad():
        method.residual.copy_(drawn(classes, classes, seed + 1))
    method(student=student, labels=labels).backward()
    expected, of_matrix = torch.zeros_like(student), torch.zeros_like(method.residual)
    for i, y in enumerate(labels.tolist()):
        q, r = naive_posterior(method.residual[y], y), naive_posterior(student[i], y, temperature)
        for c in range(classes):
            expected[i, c] = temperature * (r[c] - q[c]) / size
            of_matrix[y, c] += (1 - naive_posterior(student[i])[y]) * (q[c] - r[c]) / size
    assert torch.allclose(student.grad, expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(method.residual.grad, of_matrix, rtol=1e-9, atol=1e-12)


def test_neither_the_score_of_the_right_class_nor_the_diagonal_is_pulled():
    student, labels = drawn(6, 4, 0).requires_grad_(), torch.tensor([0, 1, 2, 3, 0, 1])
    method = AdaptiveLabels(classes=4).double()
    method(student=student, labels=labels).backward()
    assert (student.grad.gather(1, labels[:, None]) == 0).all()
    assert (method.residual.grad.diagonal() == 0).all()
    assert (method.residual.grad.abs().sum(dim=1) > 0).all()


def test_it_is_zero_when_the_wrong_classes_are_as_the_matrix_says():
    matrix, labels = drawn(5, 5, 0), torch.arange(5)
    student = (matrix[labels] + 3 + 7 * torch.eye(5, dtype=torch.float64)).requires_grad_()
    losses = residual_divergence(student=student, residual=matrix[labels], labels=labels)
    sum(losses).backward()
    assert max(losses) < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_an_image_that_is_right_teaches_the_matrix_nothing():
    student, labels = drawn(2, 4, 0), torch.tensor([0, 1])
    student[0, 0] = 60.0
    method = AdaptiveLabels(classes=4).double()
    method(student=student, labels=labels).backward()
    assert method.residual.grad[0].abs().max() < 1e-12
    assert method.residual.grad[1].abs().max() > 1e-3


def test_the_matrix_learns_what_a_student_confuses():
    method = AdaptiveLabels(classes=4)
    student = torch.tensor([[1.0, 3.0, 0.0, 0.0], [0.0, 0.0, 2.0, 4.0]])
    labels = torch.tensor([0, 2])
    optimizer = torch.optim.Adam(method.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        method(student=student, labels=labels).backward()
        optimizer.step()
    for row, y in zip(student, labels.tolist(), strict=True):
        expected = naive_posterior(row, y)
        assert naive_posterior(method.residual[y], y) == pytest.approx(expected, abs=1e-3)
    assert (method.residual[[1, 3]] == 0).all()


def test_gradients_are_finite_on_collapse_and_a_broken_student_shows():
    labels = torch.tensor([0, 1])
    for student in (torch.zeros(2, 3), torch.full((2, 3), 1e4), torch.tensor([[0.0, 1e4, 0.0], [0.0, 1e4, 0.0]])):
        method, student = AdaptiveLabels(classes=3), student.requires_grad_()
        method(student=student, labels=labels).backward()
        assert student.grad.isfinite().all()
        assert method.residual.grad.isfinite().all()
    assert AdaptiveLabels(classes=3)(student=torch.full((2, 3), torch.nan), labels=labels).isnan()


def test_half_precision_logits_are_compared_in_single_precision():
    student, labels = drawn(4, 3, 0).bfloat16(), torch.tensor([0, 1, 2, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert AdaptiveLabels(classes=3)(student=student, labels=labels).dtype == torch.float32


def test_it_reads_logits_and_labels_and_needs_no_teacher():
    method, student = AdaptiveLabels(classes=3).double(), drawn(4, 3, 0)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]), torch.arange(4))
    loss = method.from_signals(batch=batch, student=Signals(torch.eye(4), logits=student), teacher=None)
    assert loss == method(student=student, labels=batch.labels)
    assert method.student_needs == {"logits"}
    assert not method.teacher_needs


BAD = {
    "one wrong class": (lambda: AdaptiveLabels(classes=2), "classes must be at least 3, .*got 2"),
    "no number of classes": (lambda: AdaptiveLabels(classes=2.5), "classes must be a whole number .*got 2.5"),
    "no temperature": (lambda: AdaptiveLabels(classes=3, temperature=0), "temperature must be .*above 0, got 0"),
    "one wrong class in the scores": (
        lambda: residual_divergence(student=torch.zeros(2, 2), residual=torch.zeros(2, 2), labels=torch.tensor([0, 1])),
        r"at least 3 classes, got \(2, 2\) and \(2, 2\)",
    ),
    "other classes": (
        lambda: residual_divergence(student=torch.zeros(2, 3), residual=torch.zeros(2, 4), labels=torch.tensor([0, 1])),
        r"of the same images .*got \(2, 3\) and \(2, 4\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
