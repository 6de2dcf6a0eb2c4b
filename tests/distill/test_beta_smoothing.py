"""Beta smoothing against a loop over images; what is known of its draws and of who gets which."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dmlkd import Batch, Signals
from dmlkd.distill import BetaSmoothing, ranked_beta, smoothed_cross_entropy

SIZES = st.tuples(st.integers(1, 9), st.integers(2, 7), st.integers(0, 2**20))


def logits(size, classes, seed):
    return 3 * torch.randn(size, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_posterior(scores):
    powers = [math.exp(score) for score in scores.tolist()]
    return [power / sum(powers) for power in powers]


def naive_draws(size, a, seed):
    uniform = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return sorted(u ** (1 / a) for u in uniform.tolist())


@given(SIZES, st.floats(0.2, 30), st.integers(0, 3))
def test_value_and_gradient_are_those_of_a_loop_over_images(sizes, a, batches_before):
    size, classes, _ = sizes
    student, teacher = logits(*sizes).requires_grad_(), logits(size, classes, sizes[2] + 1).requires_grad_()
    labels = torch.arange(size) % classes
    method = BetaSmoothing(a=a)
    for _ in range(batches_before):
        method(student=student, teacher=teacher, labels=labels)
    found = method(student=student, teacher=teacher, labels=labels)
    (gradient,) = torch.autograd.grad(found, student)
    draws = naive_draws(size, a, batches_before)
    confidence = [naive_posterior(row)[label] for row, label in zip(teacher, labels.tolist(), strict=True)]
    expected = 0.0
    for i, label in enumerate(labels.tolist()):
        b = draws[sum(other < confidence[i] for other in confidence)]
        target = [b * (c == label) + (1 - b) / classes for c in range(classes)]
        assert sum(target) == pytest.approx(1)
        p = naive_posterior(student[i])
        expected -= sum(t * math.log(s) for t, s in zip(target, p, strict=True)) / size
        slope = [(s - t) / size for t, s in zip(target, p, strict=True)]
        assert gradient[i].tolist() == pytest.approx(slope, abs=1e-6)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=2e-6)  # draws are float32
    assert teacher.grad is None


@given(SIZES)
def test_a_share_of_one_is_cross_entropy_and_of_none_is_the_uniform_target(sizes):
    student, labels = logits(*sizes), torch.arange(sizes[0]) % sizes[1]
    full, none = (torch.full((sizes[0],), share) for share in (1.0, 0.0))
    plain = F.cross_entropy(student, labels)
    assert smoothed_cross_entropy(student=student, labels=labels, shares=full).item() == pytest.approx(plain.item())
    uniform = F.cross_entropy(student, torch.full_like(student, 1 / sizes[1]))
    assert smoothed_cross_entropy(student=student, labels=labels, shares=none).item() == pytest.approx(uniform.item())


def test_without_a_teacher_the_target_is_the_label():
    student, labels = logits(5, 3, 0), torch.tensor([0, 1, 2, 0, 1])
    method = BetaSmoothing()
    batch = Batch(torch.zeros(5, 1, 1, 1), labels, torch.arange(5))
    found = method.from_signals(batch=batch, student=Signals(torch.ones(5, 1), logits=student), teacher=None)
    assert found.item() == pytest.approx(F.cross_entropy(student, labels).item())


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20, unique=True), st.integers(0, 50))
def test_the_more_confident_keeps_more_of_its_label(confidence, seed):
    confidence = torch.tensor(confidence, dtype=torch.float64)
    shares = ranked_beta(confidence, a=2, seed=seed)
    assert (shares[confidence.argsort()].diff() >= 0).all()
    assert (shares >= 0).all()
    assert (shares <= 1).all()


@given(st.permutations(range(8)))
def test_another_order_of_the_batch_gives_each_image_the_same_share(order):
    confidence = torch.rand(8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        ranked_beta(confidence[list(order)], a=3, seed=5), ranked_beta(confidence, a=3, seed=5)[list(order)]
    )


def test_only_the_order_of_the_confidences_counts():
    student, teacher, labels = logits(6, 2, 0), logits(6, 2, 1), torch.tensor([0, 1] * 3)
    losses = {BetaSmoothing()(student=student, teacher=t * teacher, labels=labels).item() for t in (0.1, 1.0, 40.0)}
    assert len(losses) == 1  # at 40 the probabilities of several labels are 1 in double precision


@pytest.mark.parametrize("a", [0.5, 3.0, 9.0])
def test_the_draws_are_those_of_the_beta_distribution(a):
    draws = torch.cat([ranked_beta(torch.rand(50), a=a, seed=seed) for seed in range(200)]).sort().values
    assert draws.mean().item() == pytest.approx(a / (a + 1), abs=0.01)
    share_below = torch.arange(1, len(draws) + 1) / len(draws)
    assert (draws**a - share_below).abs().max() < 0.02  # P(b <= x) = x^a


def test_each_batch_draws_anew_and_not_from_the_global_generator():
    student, teacher, labels = logits(6, 3, 0), logits(6, 3, 1), torch.tensor([0, 1, 2] * 2)
    method, generator = BetaSmoothing(), torch.get_rng_state()
    losses = {method(student=student, teacher=teacher, labels=labels).item() for _ in range(5)}
    assert len(losses) == 5
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_restored_method_draws_on():
    student, teacher, labels = logits(6, 3, 0), logits(6, 3, 1), torch.tensor([0, 1, 2] * 2)
    method, restored = BetaSmoothing(), BetaSmoothing()
    first = method(student=student, teacher=teacher, labels=labels)
    restored.load_state_dict(method.state_dict())
    again = [m(student=student, teacher=teacher, labels=labels) for m in (method, restored)]
    assert torch.equal(*again)
    assert not torch.equal(first, again[0])


def test_half_precision_logits_are_compared_in_single_precision():
    student, teacher, labels = logits(4, 3, 0).bfloat16(), logits(4, 3, 1).bfloat16(), torch.tensor([0, 1, 2, 0])
    assert BetaSmoothing()(student=student, teacher=teacher, labels=labels).dtype == torch.float32


BAD = {
    "no a": (lambda: BetaSmoothing(a=0), "a must be a finite number above 0, got 0"),
    "infinite a": (lambda: BetaSmoothing(a=float("inf")), "a must be a finite number above 0, got inf"),
    "other classes": (
        lambda: BetaSmoothing()(student=torch.zeros(2, 3), teacher=torch.zeros(2, 4), labels=torch.zeros(2).long()),
        r"same images and classes, got \(2, 3\) and\s+\(2, 4\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
