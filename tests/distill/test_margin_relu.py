"""Features before the ReLU: value and gradient against loops over elements, margins against an integral, facts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import truncnorm

from dmlkd import EmbeddingModel
from dmlkd.distill import FrozenTeacher, MarginReLU, margin_relu_loss, negative_part
from dmlkd.signals import Batch
from dmlkd.training import Term

SHAPES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4)


def maps(shapes, seed, *, images=2):
    """Feature maps (B, C, H, H) of each stage."""
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(images, c, h, h, dtype=torch.float64, generator=generator) for c, h in shapes]


def margins(shapes, seed):
    return [-torch.rand(c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for c, _ in shapes]


def naive(student, teacher, floors):
    """The definition, element by element: the loss, and its gradient with respect to the student."""
    total, gradients = 0.0, [torch.zeros_like(stage) for stage in student]
    for k, (mine, theirs, floor) in enumerate(zip(student, teacher, floors, strict=True)):
        weight = 1 / 2 ** (len(student) - 1 - k) / len(mine)
        for place in torch.cartesian_prod(*(torch.arange(n) for n in mine.shape)).tolist():
            b, c, h, w = place
            s, target = mine[b, c, h, w].item(), max(theirs[b, c, h, w].item(), floor[c].item())
            if not s <= target <= 0:
                total += weight * (s - target) ** 2
                gradients[k][b, c, h, w] = 2 * weight * (s - target)
    return total, gradients


@given(SHAPES, st.integers(0, 2**20))
def test_value_and_gradient_are_those_of_a_loop_over_elements(shapes, seed):
    student, teacher, floors = maps(shapes, seed), maps(shapes, seed + 1), margins(shapes, seed)
    expected, gradients = naive(student, teacher, floors)
    for stage in student:
        stage.requires_grad_()
    loss = margin_relu_loss(student=student, teacher=teacher, margins=floors)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for stage, gradient in zip(student, gradients, strict=True):
        assert torch.allclose(stage.grad, gradient, rtol=1e-9, atol=1e-12)


@given(st.floats(-8, 8), st.floats(0.05, 5))
def test_the_margin_is_the_mean_of_the_gaussian_below_zero(mean, std):
    found = negative_part(mean=torch.tensor(mean, dtype=torch.float64), std=torch.tensor(std, dtype=torch.float64))
    if mean / std < 25:  # scipy's own loses its way further out
        assert found.item() == pytest.approx(truncnorm.mean(-math.inf, -mean / std, loc=mean, scale=std), rel=1e-4)


@given(st.floats(-1e6, 1e6), st.one_of(st.just(0.0), st.floats(0, 1e6)))
def test_the_margin_is_never_above_zero_nor_undefined(mean, std):
    found = negative_part(mean=torch.tensor(mean), std=torch.tensor(std))
    assert found <= 1e-9
    if std == 0:
        assert found.item() == pytest.approx(min(mean, 0.0), rel=1e-6)


def test_the_margin_goes_on_where_the_channel_is_hardly_ever_negative():
    means = torch.tensor([3.0, 10.0, 30.0, 100.0, 900.0])
    found = negative_part(mean=means, std=torch.ones(5))
    assert torch.allclose(found, -1 / means.double(), rtol=0.2)  # E[X | X < 0] tends to -sigma^2 / mu
    assert (found.diff() > 0).all()


def test_the_loss_is_zero_when_the_student_is_the_teacher_through_its_margin():
    shapes = [(2, 3), (3, 2)]
    teacher, floors = maps(shapes, 0), margins(shapes, 1)
    student = [torch.maximum(t, m[:, None, None]) for t, m in zip(teacher, floors, strict=True)]
    assert margin_relu_loss(student=student, teacher=teacher, margins=floors) == 0


def test_what_is_below_zero_in_both_is_left_alone_and_what_is_above_the_target_is_not():
    teacher, floor = [torch.tensor([-0.2]).view(1, 1, 1, 1)], [torch.tensor([-1.0])]
    for value, expected in ((-5.0, 0.0), (-0.2, 0.0), (0.3, 0.25)):
        loss = margin_relu_loss(student=[torch.full((1, 1, 1, 1), value)], teacher=teacher, margins=floor)
        assert loss.item() == pytest.approx(expected)


def test_the_teacher_is_cut_off_at_its_margin():
    """So that a student is not asked to follow far below 0."""
    student, teacher = torch.full((1, 1, 1, 1), -0.1), torch.full((1, 1, 1, 1), -9.0)
    assert margin_relu_loss(student=[student], teacher=[teacher], margins=[torch.tensor([-0.5])]) == pytest.approx(0.16)


def test_each_stage_weighs_half_of_the_one_after_it():
    teacher, floor = [torch.ones(1, 1, 1, 1)] * 3, [torch.zeros(1)] * 3
    for stage, expected in enumerate((0.25, 0.5, 1.0)):
        student = [torch.full((1, 1, 1, 1), 2.0 if k == stage else 1.0) for k in range(3)]
        assert margin_relu_loss(student=student, teacher=teacher, margins=floor) == expected


def test_no_gradient_reaches_the_teacher():
    student, teacher = maps([(2, 2)], 0), maps([(2, 2)], 1)
    for stage in (*student, *teacher):
        stage.requires_grad_()
    margin_relu_loss(student=student, teacher=teacher, margins=margins([(2, 2)], 0)).backward()
    assert student[0].grad.abs().sum() > 0
    assert teacher[0].grad is None


def test_half_precision_is_widened():
    student, teacher = ([stage.to(torch.bfloat16) for stage in maps([(2, 2)], seed)] for seed in (0, 1))
    floors = [margin.float() for margin in margins([(2, 2)], 2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = margin_relu_loss(student=student, teacher=teacher, margins=floors)
    wide = [[stage.float() for stage in stages] for stages in (student, teacher)]
    assert torch.equal(loss, margin_relu_loss(student=wide[0], teacher=wide[1], margins=floors))


WRONG = {
    "stages": lambda: (maps([(2, 2)], 0), maps([(2, 2), (2, 1)], 0), margins([(2, 2)], 0)),
    "channels": lambda: (maps([(2, 2)], 0), maps([(3, 2)], 0), margins([(2, 2)], 0)),
    "sizes": lambda: (maps([(2, 2)], 0), maps([(2, 3)], 0), margins([(2, 2)], 0)),
    "margins": lambda: (maps([(2, 2)], 0), maps([(2, 2)], 0), []),
    "nothing": lambda: ([], [], []),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_shapes_that_do_not_fit_are_refused(make):
    student, teacher, floors = make()
    with pytest.raises(ValueError, match="must have the same stages, a margin each"):
        margin_relu_loss(student=student, teacher=teacher, margins=floors)


def test_a_network_that_starts_from_its_teacher_is_next_to_it_and_then_is_pulled_back():
    first = EmbeddingModel("convnet4", dim=4, in_channels=1).eval()
    for norm in (module for module in first.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.weight)  # a scale of either sign
        torch.nn.init.normal_(norm.bias)
    student = EmbeddingModel("convnet4", dim=4, in_channels=1).eval()
    student.load_state_dict(first.state_dict())
    method, teacher = MarginReLU(), FrozenTeacher(first)
    Term(method, teacher)  # gives what it reads
    batch = Batch(torch.rand(6, 1, 12, 12), torch.zeros(6, dtype=torch.int64), torch.arange(6))

    def loss():
        mine = student.signals(batch.images, method.student_needs)
        (theirs,) = teacher.teach(batch=batch, student=mine, needs=method.teacher_needs).signals
        return method.from_signals(batch=batch, student=mine, teacher=theirs)

    near = loss().item()
    norms = [m for m in first.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    said = first.signals(batch.images, method.teacher_needs)
    floors = [negative_part(mean=norm.bias.detach(), std=norm.weight.detach().abs()) for norm in norms]
    cut = [torch.maximum(t, m.float()[:, None, None]) for t, m in zip(said.pre_activations, floors, strict=True)]
    expected = margin_relu_loss(
        student=said.pre_activations, teacher=cut, margins=[torch.full_like(m, -1e9) for m in floors]
    )
    assert near == pytest.approx(expected.item(), rel=1e-5)
    with torch.no_grad():
        for weight in student.trunk.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    optimizer = torch.optim.SGD(student.trunk.parameters(), lr=1e-6)
    far = loss()
    assert far > 10 * near
    far.backward()
    optimizer.step()
    assert loss() < far


def test_a_teacher_that_has_no_such_features_is_refused():
    with pytest.raises(ValueError, match="MarginReLU needs its teacher's pre_activation_norms, pre_activations"):
        Term(MarginReLU(), FrozenTeacher(torch.nn.Linear(2, 2)))
