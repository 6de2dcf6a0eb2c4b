"""Distillation among the classes that a teacher knows, against a loop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.distill import DiscriminativeDistillation, PosteriorDistillation

SIZES = st.tuples(st.integers(1, 6), st.integers(2, 6), st.integers(0, 2**20))


def scores(size, classes, seed):
    return 3 * torch.randn(size, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def posterior(row, known, temperature):
    powers = {c: math.exp(row[c] / temperature) for c in known}
    return {c: power / sum(powers.values()) for c, power in powers.items()}


@given(SIZES, st.floats(0.3, 8))
def test_value_and_gradient_are_those_of_a_loop_over_known_classes(sizes, temperature):
    student, teacher = scores(*sizes).requires_grad_(), scores(*sizes[:2], sizes[2] + 1)
    known = list(range(0, sizes[1], 2))
    teacher[:, [c for c in range(sizes[1]) if c not in known]] = -torch.inf
    teacher.requires_grad_()
    loss = DiscriminativeDistillation(temperature=temperature)(student=student, teacher=teacher)
    loss.backward()
    expected, gradient = 0.0, torch.zeros_like(student)
    for i in range(sizes[0]):
        p, q = (posterior(part[i].tolist(), known, temperature) for part in (student, teacher))
        for c in known:
            expected += q[c] * math.log(q[c] / p[c]) / sizes[0]
            gradient[i, c] = temperature * (p[c] - q[c]) / sizes[0]
    assert loss.item() == pytest.approx(temperature**2 * expected, rel=1e-8, abs=1e-11)
    assert torch.allclose(student.grad, gradient, rtol=1e-8, atol=1e-11)
    assert teacher.grad is None


@pytest.mark.parametrize("comparison", ["kl", "reverse_kl", "symmetric_kl"])
def test_scores_of_unknown_classes_count_for_nothing_and_their_gradient_is_0(comparison):
    student, teacher = scores(4, 5, 0).float(), scores(4, 5, 1).float()
    teacher[:, 3:] = -torch.inf
    other = student.clone()
    other[:, 3:] += 100
    method = DiscriminativeDistillation(temperature=2, comparison=comparison)
    student.requires_grad_()
    loss = method(student=student, teacher=teacher)
    assert loss.item() == pytest.approx(method(student=other, teacher=teacher).item(), rel=1e-5)
    assert loss > 0.01
    loss.backward()
    assert (student.grad[:, 3:] == 0).all()
    assert torch.isfinite(student.grad).all()


def test_of_a_teacher_that_knows_all_it_is_the_plain_divergence():
    student, teacher = scores(4, 5, 0), scores(4, 5, 1)
    ours, plain = (
        kind()(student=student, teacher=teacher) for kind in (DiscriminativeDistillation, PosteriorDistillation)
    )
    assert torch.equal(ours, plain)


def test_over_all_classes_the_same_target_would_push_unknown_classes_down():
    student, teacher = scores(4, 5, 0).requires_grad_(), scores(4, 5, 1)
    teacher[:, 3:] = -torch.inf
    PosteriorDistillation()(student=student, teacher=teacher).backward()
    assert (student.grad[:, 3:] > 0).all()


BAD = {
    "temperature": (lambda: DiscriminativeDistillation(temperature=0), "temperature must be .* above 0, got 0"),
    "other classes": (
        lambda: DiscriminativeDistillation()(student=torch.zeros(2, 3), teacher=torch.zeros(2, 4)),
        "same images and classes",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
