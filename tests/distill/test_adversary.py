"""AI-KD's adversary: both losses against loops over images, whose gradient is whose, facts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dmlkd.distill import Adversary, adversarial_losses
from dmlkd.signals import Batch, Signals

SIZES = st.tuples(st.integers(1, 8), st.integers(1, 7), st.integers(0, 2**20))


def drawn(size, classes, seed, scale=3.0):
    return scale * torch.randn(size, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(classes, hidden=5):
    return nn.Sequential(nn.Linear(classes, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)).double()


def naive_chance(discriminator, scores):
    """That a teacher said it, by loops over the units."""
    first, last = discriminator[0], discriminator[2]
    odds = last.bias.item()
    for unit in range(len(first.bias)):
        a = first.bias[unit].item() + sum(
            w * o for w, o in zip(first.weight[unit].tolist(), scores.tolist(), strict=True)
        )
        odds += last.weight[0, unit].item() * (a if a > 0 else 0.2 * a)
    return 1 / (1 + math.exp(-odds))


@given(SIZES)
def test_both_losses_are_those_of_loops_over_images(sizes):
    student, teacher, discriminator = drawn(*sizes), drawn(*sizes[:2], sizes[2] + 1), network(sizes[1])
    found = adversarial_losses(discriminator=discriminator, student=student, teacher=teacher)
    mine = [naive_chance(discriminator, o) for o in student]
    theirs = [naive_chance(discriminator, o) for o in teacher]
    assert found.student.item() == pytest.approx(-sum(math.log(d) for d in mine) / len(mine), rel=1e-9)
    told = sum(math.log(d) for d in theirs) + sum(math.log(1 - d) for d in mine)
    assert found.discriminator.item() == pytest.approx(-told / (2 * len(mine)), rel=1e-9)


def test_the_students_gradient_is_that_of_passing_for_the_teacher_alone():
    method = Adversary(classes=4, hidden=6).double()
    student, teacher = drawn(5, 4, 0).requires_grad_(), drawn(5, 4, 1).requires_grad_()
    method(student=student, teacher=teacher).backward()
    expected = drawn(5, 4, 0).requires_grad_()
    (-torch.log(torch.sigmoid(method.discriminator(expected)))).mean().backward()
    assert torch.allclose(student.grad, expected.grad, rtol=1e-9, atol=1e-12)
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_the_discriminators_gradient_is_that_of_telling_them_apart_alone():
    method = Adversary(classes=4, hidden=6).double()
    student, teacher = drawn(5, 4, 0).requires_grad_(), drawn(5, 4, 1)
    method(student=student, teacher=teacher).backward()
    found = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    said = torch.sigmoid(method.discriminator(torch.cat([teacher, student.detach()]))).squeeze(1)
    truth = torch.cat([torch.ones(5), torch.zeros(5)]).double()
    nn.functional.binary_cross_entropy(said, truth).backward()
    for mine, parameter in zip(found, method.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, rtol=1e-9, atol=1e-12)
        assert mine.abs().sum() > 0


def test_one_step_of_one_optimiser_is_a_step_of_each_side_in_turn():
    together, apart = (Adversary(classes=3, hidden=4).double() for _ in range(2))
    apart.load_state_dict(together.state_dict())
    teacher = drawn(6, 3, 1)
    one, other = (nn.Parameter(drawn(6, 3, 0)) for _ in range(2))
    both = torch.optim.Adam([one, *together.parameters()], lr=0.1)
    first, second = torch.optim.Adam([other], lr=0.1), torch.optim.Adam(apart.parameters(), lr=0.1)
    for _ in range(5):
        both.zero_grad()
        together(student=one, teacher=teacher).backward()
        both.step()
        said = other.detach().clone()
        first.zero_grad()
        nn.functional.softplus(-apart.discriminator(other)).mean().backward()
        first.step()
        second.zero_grad()
        adversarial_losses(discriminator=apart.discriminator, student=said, teacher=teacher).discriminator.backward()
        second.step()
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@given(SIZES, st.floats(0.1, 100))
def test_no_image_is_pulled_harder_than_one_over_b(sizes, scale):
    size, classes, seed = sizes
    torch.manual_seed(seed)
    method = Adversary(classes=classes, hidden=5).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(scale)  # as large as training may make them
    student = drawn(*sizes, scale=20).requires_grad_()
    method(student=student, teacher=drawn(size, classes, seed + 1)).backward()
    assert (student.grad.norm(dim=1) <= (1 + 1e-9) / size).all()


def test_the_discriminator_learns_to_tell_two_gaussians():
    method = Adversary(classes=4, hidden=16)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    centre = torch.tensor([2.0, 0.0, -1.0, 0.0])
    for _ in range(200):
        optimizer.zero_grad()
        method(student=torch.randn(64, 4), teacher=centre + torch.randn(64, 4)).backward()
        optimizer.step()
    with torch.no_grad():
        theirs, mine = (method.discriminator(z + torch.randn(1000, 4)) for z in (centre, torch.zeros(4)))
    right = ((theirs > 0).float().mean() + (mine < 0).float().mean()) / 2
    assert right > 0.84  # the best possible is 0.868, half the distance being 1.118


def test_a_student_that_follows_it_becomes_harder_to_tell():
    method, student = Adversary(classes=2, hidden=16), nn.Parameter(torch.randn(64, 2) + 3)
    optimizer = torch.optim.Adam([student, *method.parameters()], lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        method(student=student, teacher=torch.randn(64, 2)).backward()
        optimizer.step()
    assert student.mean(dim=0).norm() < 1.5  # from 4.2


def test_losses_stay_finite_where_the_discriminator_is_certain():
    method = Adversary(classes=3)
    student = torch.full((2, 3), 1e6).requires_grad_()
    loss = method(student=student, teacher=-student)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_half_precision_logits_are_told_apart_in_single_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Adversary(classes=3)(student=torch.zeros(2, 3).bfloat16(), teacher=torch.ones(2, 3).bfloat16())
    assert loss.dtype == torch.float32


def test_it_reads_the_logits_of_both_and_its_discriminator_is_in_its_state():
    method, student, teacher = Adversary(classes=3).double(), drawn(2, 3, 0), drawn(2, 3, 1)
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(2))
    loss = method.from_signals(
        batch=batch, student=Signals(torch.eye(2), logits=student), teacher=Signals(torch.eye(2), logits=teacher)
    )
    again = Adversary(classes=3).double()
    assert again(student=student, teacher=teacher) != loss
    again.load_state_dict(method.state_dict())
    assert again(student=student, teacher=teacher) == loss


BAD = {
    "no classes": (lambda: Adversary(classes=0), "classes must be a whole number of at least 1, got 0"),
    "no units": (lambda: Adversary(classes=3, hidden=0), "hidden must be a whole number of at least 1, got 0"),
    "other classes": (
        lambda: Adversary(classes=3)(student=torch.zeros(2, 3), teacher=torch.zeros(2, 4)),
        r"got \(2, 3\) and\s+\(2, 4\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
