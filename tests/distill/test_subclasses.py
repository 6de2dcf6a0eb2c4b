"""Subclass distillation: spread and divergence against loops over images, facts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.distill import SubclassDistillation, SubclassSpread, posterior_divergence, subclass_spread

SIZES = st.tuples(st.integers(2, 8), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**20))


def scores(size, classes, subclasses, seed):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(size, classes, subclasses, dtype=torch.float64, generator=generator)


def naive_spread(logits, temperature):
    """The formula entry by entry, in operations that carry a gradient."""
    size = len(logits)
    flat = [[logits[i, c, k] for c in range(logits.shape[1]) for k in range(logits.shape[2])] for i in range(size)]
    columns = []
    for column in zip(*flat, strict=True):
        mean = sum(column) / size
        variance = sum((entry - mean) ** 2 for entry in column) / size
        columns.append([(entry - mean) / (variance + 1e-5).sqrt() for entry in column])
    rows = []
    for row in zip(*columns, strict=True):
        length = sum(entry**2 for entry in row).sqrt()
        rows.append([entry / length for entry in row])

    def product(i, j):
        return sum(a * b for a, b in zip(rows[i], rows[j], strict=True))

    loss = 0.0
    for i in range(size):
        others = sum((product(i, j) / temperature).exp() for j in range(size)) / size
        loss = loss - ((product(i, i) / temperature).exp() / others).log() / size
    return loss


@given(SIZES, st.floats(0.2, 5))
def test_spread_and_its_gradient_are_those_of_a_loop_over_images(sizes, temperature):
    ours, naive = scores(*sizes).requires_grad_(), scores(*sizes).requires_grad_()
    loss, expected = subclass_spread(ours, temperature=temperature), naive_spread(naive, temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    loss.backward()
    expected.backward()
    assert torch.allclose(ours.grad, naive.grad, rtol=1e-6, atol=1e-9)


def test_spread_is_lowest_where_images_differ_and_zero_where_all_are_alike():
    alike = torch.ones(6, 2, 3, requires_grad=True)
    corners = 9 * torch.eye(6).view(6, 2, 3)
    pairs = corners[[0, 0, 1, 1, 2, 2]]
    loss = subclass_spread(alike)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert alike.grad.isfinite().all()
    assert subclass_spread(corners) < subclass_spread(pairs) < 0


def test_spread_does_not_look_at_scale_or_offset_of_a_subclass_or_at_the_order():
    logits = scores(7, 3, 2, 0)
    changed = logits * torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)[:, None] + 4
    assert subclass_spread(changed).item() == pytest.approx(subclass_spread(logits).item(), rel=1e-4)
    assert subclass_spread(logits[torch.randperm(7)]).item() == pytest.approx(subclass_spread(logits).item())


@given(SIZES, st.floats(0.3, 8))
def test_divergence_and_its_gradient_are_those_of_a_loop_over_images(sizes, temperature):
    student, teacher = scores(*sizes).requires_grad_(), scores(*sizes[:3], sizes[3] + 1).requires_grad_()
    loss = SubclassDistillation(temperature=temperature)(student=student, teacher=teacher)
    loss.backward()
    expected, gradient = 0.0, torch.zeros_like(student)
    places = [(c, k) for c in range(sizes[1]) for k in range(sizes[2])]
    for i in range(sizes[0]):
        mine, theirs = (
            {place: math.exp(of.detach()[i][place].item() / temperature) for place in places}
            for of in (student, teacher)
        )
        for place in places:
            p, q = mine[place] / sum(mine.values()), theirs[place] / sum(theirs.values())
            expected += q * math.log(q / p)
            gradient[i][place] = temperature * (p - q) / sizes[0]
    assert loss.item() == pytest.approx(temperature**2 * expected / sizes[0], rel=1e-8, abs=1e-11)
    assert torch.allclose(student.grad, gradient, rtol=1e-8, atol=1e-11)
    assert teacher.grad is None


def test_loss_is_zero_when_student_equals_teacher_and_of_one_subclass_it_is_that_of_classes():
    student, teacher = scores(5, 3, 1, 0), scores(5, 3, 1, 1)
    method = SubclassDistillation(temperature=2)
    assert abs(method(student=student, teacher=student).item()) < 1e-12
    classes = posterior_divergence(student=student[:, :, 0], teacher=teacher[:, :, 0], temperature=2)
    assert method(student=student, teacher=teacher).item() == pytest.approx(classes.item())


def test_subclasses_that_are_equally_likely_in_sum_are_still_told_apart():
    """What a class posterior cannot say: which of its subclasses an image is of."""
    student = torch.tensor([[[4.0, 0.0], [0.0, 0.0]]])
    teacher = torch.tensor([[[0.0, 4.0], [0.0, 0.0]]])
    classes = posterior_divergence(student=student.logsumexp(2), teacher=teacher.logsumexp(2))
    assert abs(classes.item()) < 1e-6
    assert SubclassDistillation(temperature=1)(student=student, teacher=teacher) > 1


def test_half_precision_logits_are_compared_in_single_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = subclass_spread(scores(4, 2, 2, 0).float())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, subclass_spread(scores(4, 2, 2, 0).float()))


BAD = {
    "no spread temperature": (lambda: SubclassSpread(temperature=0), "temperature must be .* above 0, got 0"),
    "no temperature": (lambda: SubclassDistillation(temperature=-1), "temperature must be .* above 0, got -1"),
    "one image": (lambda: subclass_spread(torch.zeros(1, 2, 2)), r"at least 2 images, got shape \(1, 2, 2\)"),
    "classes alone": (lambda: subclass_spread(torch.zeros(4, 2)), r"must be \(B, C, K\).*got shape \(4, 2\)"),
    "other subclasses": (
        lambda: SubclassDistillation()(student=torch.zeros(2, 3, 4), teacher=torch.zeros(2, 4, 3)),
        r"as many subclasses, got \(2, 3, 4\) and \(2, 4, 3\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
