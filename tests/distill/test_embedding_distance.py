"""Plain distillation of embeddings against a loop over images; teachers of another dimension."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlkd import EmbeddingModel
from dmlkd.distill import (
    EmbeddingDistillation,
    FrozenTeacher,
    MovingAverageTeacher,
    OutOfFoldTeacher,
    WiderHeadsTeacher,
    embedding_distance,
)
from dmlkd.training import Term

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**20))


def unit(size, dim, seed):
    vectors = torch.randn(size, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


@given(SIZES)
def test_value_and_gradient_are_those_of_a_loop_over_images(sizes):
    student, teacher = unit(*sizes).requires_grad_(), unit(*sizes[:2], sizes[2] + 1).requires_grad_()
    rows = torch.arange(sizes[0]) % 2 == 0
    loss = embedding_distance(student=student, teacher=teacher, rows=rows)
    loss.backward()
    expected, gradient = 0.0, torch.zeros_like(student)
    for i in range(sizes[0]):
        if i % 2:
            continue
        for d in range(sizes[1]):
            difference = student[i, d].item() - teacher[i, d].item()
            expected += difference**2 / sizes[0]
            gradient[i, d] = 2 * difference / sizes[0]
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert torch.allclose(student.grad, gradient, atol=1e-12)
    assert teacher.grad is None


def test_it_is_twice_the_lack_of_cosine():
    student, teacher = unit(5, 4, 0), unit(5, 4, 1)
    cosine = (student * teacher).sum(dim=1).mean()
    assert EmbeddingDistillation()(student=student, teacher=teacher).item() == pytest.approx(2 - 2 * cosine.item())
    assert EmbeddingDistillation()(student=student, teacher=student) == 0


def test_a_teacher_of_another_dimension_is_refused_beforehand():
    student, other = EmbeddingModel(in_channels=1, dim=8), EmbeddingModel(in_channels=1, dim=6)
    with pytest.raises(ValueError, match="the teacher's have 6, the student's 8"):
        Term(EmbeddingDistillation(dim=8), FrozenTeacher(other))
    heads = WiderHeadsTeacher(features=4, metric_loss=lambda _: torch.nn.Identity(), dims=[8, 16])
    folds = OutOfFoldTeacher([student, other], torch.tensor([0, 1]))
    for teacher, dim in ((heads, 16), (folds, 6), (MovingAverageTeacher(other), 6)):
        with pytest.raises(ValueError, match=f"the teacher's have {dim}, the student's 8"):
            Term(EmbeddingDistillation(dim=8), teacher)
    for teacher in (FrozenTeacher(student), MovingAverageTeacher(student), FrozenTeacher(torch.nn.Identity())):
        Term(EmbeddingDistillation(dim=8), teacher)


BAD = {
    "dim": (lambda: EmbeddingDistillation(dim=0), "dim must be a whole number of at least 1, got 0"),
    "other dimensions": (
        lambda: EmbeddingDistillation()(student=torch.zeros(2, 3), teacher=torch.zeros(2, 4)),
        r"same images and dimension, got \(2, 3\) and \(2, 4\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
