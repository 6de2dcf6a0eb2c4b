"""SD-Dropout: its divergence against loops over entries, its masks, facts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dmlkd.distill import SelfDistillationDropout, mutual_divergence
from dmlkd.distill.dropout import dropout_masks
from dmlkd.signals import Batch, Signals

SIZES = st.tuples(st.integers(1, 8), st.integers(2, 7), st.integers(0, 2**20))


def drawn(size, classes, seed, scale=3.0):
    return scale * torch.randn(size, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_divergence(first, second, temperature):
    loss = 0.0
    for one, other in zip(first, second, strict=True):
        powers = [[math.exp(o / temperature) for o in scores.tolist()] for scores in (one, other)]
        p, q = ([power / sum(row) for power in row] for row in powers)
        loss += sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return temperature**2 * loss / len(first)


@given(SIZES, st.floats(0.3, 8))
def test_divergence_is_that_of_a_loop_over_images(sizes, temperature):
    first, second = drawn(*sizes), drawn(*sizes[:2], sizes[2] + 1)
    found = mutual_divergence(first=first, second=second, temperature=temperature)
    assert found.item() == pytest.approx(naive_divergence(first, second, temperature), rel=1e-9, abs=1e-12)


@given(SIZES, st.floats(0.5, 8))
def test_the_gradient_of_both_sides_is_the_slope_of_the_loop(sizes, temperature):
    first, second = drawn(*sizes).requires_grad_(), drawn(*sizes[:2], sizes[2] + 1).requires_grad_()
    mutual_divergence(first=first, second=second, temperature=temperature).backward()
    direction, step = drawn(*sizes[:2], sizes[2] + 2, scale=1.0), 1e-5
    for moved, sides in ((first, lambda d: (first + d, second)), (second, lambda d: (first, second + d))):
        after, before = (
            naive_divergence(*(x.detach() for x in sides(s * direction)), temperature) for s in (step, -step)
        )
        slope = (moved.grad * direction).sum().item()
        assert slope == pytest.approx((after - before) / (2 * step), rel=1e-4, abs=1e-6)


def test_divergence_and_its_gradient_vanish_when_both_are_equal_and_it_has_no_first_and_second():
    first, second = drawn(6, 4, 0).requires_grad_(), drawn(6, 4, 1)
    loss = mutual_divergence(first=first, second=first.detach().clone())
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert first.grad.abs().max() < 1e-12
    assert mutual_divergence(first=first, second=second) == mutual_divergence(first=second, second=first)


def test_the_loss_is_that_of_two_masked_passes_of_the_classifier():
    head, features = nn.Linear(16, 5).double(), drawn(6, 16, 0).requires_grad_()
    method = SelfDistillationDropout(classify=head, rate=0.3, temperature=2)
    loss = method(features=features)
    u, v = dropout_masks(features, rate=0.3, seed=0)
    assert loss.item() == pytest.approx(naive_divergence(head(features * u), head(features * v), 2), rel=1e-9)
    loss.backward()
    both_out = (u == 0) & (v == 0)
    assert both_out.any()
    assert (features.grad[both_out] == 0).all()
    assert (features.grad[~both_out] != 0).all()
    assert head.weight.grad.abs().sum() > 0
    assert not list(method.parameters())


def test_masks_leave_out_the_rate_and_keep_the_mean():
    masks = dropout_masks(torch.zeros(200, 500), rate=0.2, seed=3)
    assert (masks == 0).float().mean() == pytest.approx(0.2, abs=0.005)
    assert set(masks.unique().tolist()) == {0.0, 1.25}
    both = ((masks[0] == 0) & (masks[1] == 0)).float().mean()
    assert both == pytest.approx(0.04, abs=0.005)


def test_without_dropout_there_is_no_loss():
    assert SelfDistillationDropout(classify=nn.Linear(4, 3), rate=0)(features=torch.randn(5, 4)) == 0


def test_each_step_draws_anew_and_goes_on_where_it_was_whatever_else_is_drawn():
    head, features = nn.Linear(16, 5), torch.randn(6, 16)
    method, again = (SelfDistillationDropout(classify=head) for _ in range(2))
    losses = []
    for _ in range(4):
        losses.append(method(features=features).item())
        torch.rand(3)
        assert method(features=features).item() == losses[-1]
        method.after_step()
    assert len(set(losses)) == 4
    again.load_state_dict(method.state_dict())
    assert again(features=features) == method(features=features)
    assert again(features=features).item() not in losses


def test_it_reads_features_and_needs_no_teacher():
    method = SelfDistillationDropout(classify=nn.Linear(4, 3))
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(2))
    student = Signals(torch.eye(2), features=torch.randn(2, 4))
    assert method.from_signals(batch=batch, student=student, teacher=None) == method(features=student.features)
    assert method.student_needs == {"features"}
    assert not method.teacher_needs


def test_half_precision_logits_are_compared_in_single_precision():
    first, second = drawn(4, 3, 0).bfloat16(), drawn(4, 3, 1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mutual_divergence(first=first, second=second).dtype == torch.float32


BAD = {
    "everything left out": (
        lambda: SelfDistillationDropout(classify=nn.Identity(), rate=1),
        "rate must be a number of at least 0 and below 1, got 1",
    ),
    "no temperature": (
        lambda: SelfDistillationDropout(classify=nn.Identity(), temperature=-1),
        "temperature must be a finite number above 0, got -1",
    ),
    "other classes": (
        lambda: mutual_divergence(first=torch.zeros(2, 3), second=torch.zeros(2, 4)),
        r"got \(2, 3\) and\s+\(2, 4\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
