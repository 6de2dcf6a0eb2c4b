"""Class posteriors: their divergences and mixed targets against loops over entries, partners, facts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.distill import (
    CrossEntropy,
    LabelMixing,
    LinearRamp,
    PartnerTeacher,
    PosteriorDistillation,
    mixed_cross_entropy,
    posterior_divergence,
)
from dmlkd.distill.partner import partners_of
from dmlkd.signals import Batch, Signals

SIZES = st.tuples(st.integers(1, 9), st.integers(2, 7), st.integers(0, 2**20))


def logits(size, classes, seed, scale=3.0):
    return scale * torch.randn(size, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_posterior(scores, temperature):
    powers = [math.exp(float(score) / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def naive_kl(first, second):
    return sum(a * math.log(a / b) for a, b in zip(first, second, strict=True))


@given(SIZES, st.floats(0.3, 8), st.sampled_from(["kl", "reverse_kl", "symmetric_kl"]))
def test_divergence_is_that_of_a_loop_over_images(sizes, temperature, comparison):
    student, teacher = logits(*sizes), logits(*sizes[:2], sizes[2] + 1)
    expected = 0.0
    for mine, theirs in zip(student, teacher, strict=True):
        p, q = naive_posterior(mine, temperature), naive_posterior(theirs, temperature)
        expected += {
            "kl": naive_kl(q, p),
            "reverse_kl": naive_kl(p, q),
            "symmetric_kl": naive_kl(q, p) + naive_kl(p, q),
        }[comparison]
    found = posterior_divergence(student=student, teacher=teacher, temperature=temperature, comparison=comparison)
    assert found.item() == pytest.approx(temperature**2 * expected / len(student), rel=1e-9, abs=1e-12)


@given(SIZES, st.floats(0.3, 8))
def test_gradient_of_the_divergence_is_that_of_the_formula(sizes, temperature):
    student, teacher = logits(*sizes).requires_grad_(), logits(*sizes[:2], sizes[2] + 1).requires_grad_()
    posterior_divergence(student=student, teacher=teacher, temperature=temperature).backward()
    difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
    assert torch.allclose(student.grad, temperature * difference / len(student), rtol=1e-9, atol=1e-12)
    assert teacher.grad is None


@pytest.mark.parametrize("comparison", ["kl", "reverse_kl", "symmetric_kl"])
def test_divergence_and_its_gradient_vanish_when_student_equals_teacher(comparison):
    student = logits(6, 4, 0).requires_grad_()
    loss = posterior_divergence(student=student, teacher=student.detach().clone(), comparison=comparison)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_a_class_the_teacher_rules_out_asks_for_nothing_and_a_broken_student_shows():
    teacher = logits(3, 4, 1)
    teacher[:, 2] = -torch.inf
    student = logits(3, 4, 0).requires_grad_()
    loss = posterior_divergence(student=student, teacher=teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert posterior_divergence(student=student * torch.nan, teacher=teacher).isnan()


@given(SIZES, st.floats(0, 1))
def test_mixed_target_is_that_of_a_loop_over_images(sizes, share):
    student, teacher = logits(*sizes), logits(*sizes[:2], sizes[2] + 1)
    labels = torch.arange(sizes[0]) % sizes[1]
    expected = 0.0
    for mine, theirs, label in zip(student, teacher, labels.tolist(), strict=True):
        p, q = naive_posterior(mine, 1), naive_posterior(theirs, 1)
        target = [share * q[c] + (1 - share) * (c == label) for c in range(len(q))]
        expected -= sum(t * math.log(s) for t, s in zip(target, p, strict=True))
    found = mixed_cross_entropy(student=student, teacher=teacher, labels=labels, share=share)
    assert found.item() == pytest.approx(expected / len(student), rel=1e-9, abs=1e-12)


def test_the_share_of_the_teacher_grows_with_the_epochs_and_without_teacher_the_label_is_all():
    student, teacher, labels = logits(4, 3, 0), logits(4, 3, 1), torch.tensor([0, 1, 2, 0])
    mixing = LabelMixing(share=0.8, growth=LinearRamp(ends_full=True))
    for epoch in range(4):
        mixing.start_epoch(epoch, 4)
        expected = mixed_cross_entropy(student=student, teacher=teacher, labels=labels, share=0.8 * (epoch + 1) / 4)
        assert mixing(student=student, teacher=teacher, labels=labels).item() == pytest.approx(expected.item())
    alone = mixing(student=student, teacher=None, labels=labels)
    assert torch.equal(alone, CrossEntropy()(student=student, labels=labels))


def test_half_precision_logits_are_compared_in_single_precision():
    student, teacher = logits(4, 3, 0).bfloat16(), logits(4, 3, 1).bfloat16()
    assert posterior_divergence(student=student, teacher=teacher).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = posterior_divergence(student=student.float(), teacher=teacher.float())
    assert torch.equal(inside, posterior_divergence(student=student.float(), teacher=teacher.float()))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 50))
def test_a_partner_is_another_image_of_the_class(labels, seed):
    labels, rows = torch.tensor(labels), torch.arange(len(labels)) // 2
    partners = partners_of(labels, rows, seed=seed)
    for i, j in enumerate(partners.tolist()):
        others = [k for k in range(len(labels)) if labels[k] == labels[i] and rows[k] != rows[i]]
        assert j in others if others else j == -1


def test_every_partner_is_drawn_and_another_in_another_step():
    labels, rows = torch.zeros(4, dtype=torch.long), torch.arange(4)
    drawn = torch.stack([partners_of(labels, rows, seed=seed) for seed in range(300)])
    for image in range(4):
        counts = torch.bincount(drawn[:, image], minlength=4)
        assert counts[image] == 0
        assert counts[counts > 0].min() > 70
        assert (counts > 0).sum() == 3


def test_the_partner_teaches_without_gradient_and_goes_on_where_it_was():
    teacher, again = PartnerTeacher(), PartnerTeacher()
    student = Signals(torch.eye(5), logits=logits(5, 3, 0).requires_grad_())
    batch = Batch(torch.zeros(5, 1, 2, 2), torch.tensor([0, 0, 0, 1, 2]), torch.arange(5))
    for _ in range(3):
        teacher.after_step(teacher)
    again.load_state_dict(teacher.state_dict())
    lesson, same = (t.teach(batch=batch, student=student, needs=["logits"]) for t in (teacher, again))
    assert lesson.positions.tolist() == [0, 1, 2]
    assert not lesson.signals[0].logits.requires_grad
    assert torch.equal(lesson.signals[0].logits, same.signals[0].logits)


BAD = {
    "no temperature": (
        lambda: PosteriorDistillation(temperature=0),
        "temperature must be a finite number above 0, got 0",
    ),
    "no comparison": (lambda: PosteriorDistillation(comparison="js"), "comparison must be one of 'kl', .*got 'js'"),
    "share above 1": (lambda: LabelMixing(share=1.5), "share must be a number from 0 to 1, got 1.5"),
    "other classes": (
        lambda: posterior_divergence(student=torch.zeros(2, 3), teacher=torch.zeros(2, 4)),
        r"same images and classes, got \(2, 3\) and\s+\(2, 4\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
