"""Learning ambiguity: the re-calibrated target against a loop, the lower exit as its teacher."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.losses import ContrastiveLoss
from torch.nn import functional as F

from dmlkd import Batch, EmbeddingModel, Objective
from dmlkd.distill import After, AmbiguityDistillation, LowerExitTeacher, recalibrated_logits
from dmlkd.models import ClassHead, ClassifyingModel
from dmlkd.training import Term

SIZES = st.tuples(st.integers(1, 8), st.integers(2, 6), st.integers(0, 2**20))


def scores(size, classes, seed):
    return 3 * torch.randn(size, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_target(row, label, margin, temperature):
    """The lower layer's probabilities of one image, the label's raised if it is extremely ambiguous."""
    powers = [math.exp(score / temperature) for score in row.tolist()]
    target = [power / sum(powers) for power in powers]
    if max(target) - target[label] > margin:
        target[label] = max(target)
    return [share / sum(target) for share in target]


@given(SIZES, st.floats(0, 0.9), st.floats(0.3, 6))
def test_value_and_gradient_are_those_of_a_loop_over_images(sizes, margin, temperature):
    student, teacher = scores(*sizes).requires_grad_(), scores(*sizes[:2], sizes[2] + 1).requires_grad_()
    labels = torch.arange(sizes[0]) % sizes[1]
    loss = AmbiguityDistillation(temperature=temperature, margin=margin)(
        student=student, teacher=teacher, labels=labels
    )
    loss.backward()
    expected, gradient = 0.0, torch.zeros_like(student)
    for i, label in enumerate(labels.tolist()):
        target = naive_target(teacher.detach()[i], label, margin, temperature)
        mine = naive_target(student.detach()[i], label, 1, temperature)
        expected += sum(t * math.log(t / s) for t, s in zip(target, mine, strict=True))
        for c in range(sizes[1]):
            gradient[i, c] = temperature * (mine[c] - target[c]) / len(labels)
    assert loss.item() == pytest.approx(temperature**2 * expected / len(labels), rel=1e-8, abs=1e-11)
    assert torch.allclose(student.grad, gradient, rtol=1e-8, atol=1e-11)
    assert teacher.grad is None


def test_the_label_is_raised_to_the_largest_and_never_lowered():
    given_scores, labels = scores(50, 5, 0), torch.arange(50) % 5
    raised, ambiguous = recalibrated_logits(given_scores, labels)
    before, after = given_scores.softmax(1), raised.softmax(1)
    rows = torch.arange(50)
    assert 0 < ambiguous.sum() < 50
    assert torch.allclose(after[rows, labels][ambiguous], after.amax(1)[ambiguous])
    assert torch.equal(raised[~ambiguous], given_scores[~ambiguous])
    assert (after[rows, labels] >= before[rows, labels]).all()
    assert torch.allclose(after.sum(1), torch.ones(50, dtype=torch.float64))


def test_a_larger_margin_holds_fewer_images_to_be_ambiguous():
    given_scores, labels = scores(200, 5, 0), torch.arange(200) % 5
    counts = [recalibrated_logits(given_scores, labels, margin=m)[1].sum().item() for m in (0, 0.3, 0.6, 0.99)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > 0


def test_loss_is_zero_when_the_student_says_the_target():
    teacher, labels = scores(6, 4, 1), torch.arange(6) % 4
    target, _ = recalibrated_logits(teacher, labels)
    assert abs(AmbiguityDistillation()(student=target, teacher=teacher, labels=labels).item()) < 1e-12


@pytest.fixture
def student() -> ClassifyingModel:
    model = EmbeddingModel("convnet4", dim=4, in_channels=1, backbone_args={"width": 8})
    return ClassifyingModel(model, ClassHead(dim=4, classes=3))


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.rand(6, 1, 16, 16), torch.arange(6) // 2, torch.arange(6))


def exit_after(stage: int = 1, **kwargs) -> LowerExitTeacher:
    return LowerExitTeacher(stages=(8, 8, 8, 8), classes=3, stage=stage, **kwargs)


def learning(teacher: LowerExitTeacher) -> Objective:
    return Objective(ContrastiveLoss(), [Term(AmbiguityDistillation(), teacher, schedule=After(epochs=2), name="b8")])


def test_the_exit_learns_in_the_first_phase_and_teaches_in_the_second(student, batch):
    teacher = exit_after()
    objective = learning(teacher)
    for epoch in range(4):
        objective.start_epoch(student, epoch, 4)
        losses = objective(student.signals(batch.images, objective.student_needs), batch)
        assert list(losses.distill) == (["b8"] if epoch >= 2 else [])
        assert losses.teachers["b8"] > 0
        expected = losses.metric + losses.teachers["b8"] + sum(losses.distill.values())
        assert losses.total.item() == pytest.approx(expected.item())


def test_the_exit_says_what_its_stage_gives_it(student, batch):
    teacher = exit_after(stage=2).eval()
    signals = student.signals(batch.images, ["stages", "logits"])
    lesson = teacher.teach(batch=batch, student=signals, needs=["logits"])
    logits = teacher.exit(signals.stages[2]).outputs
    assert torch.equal(lesson.signals[0].logits, logits)
    assert not lesson.signals[0].logits.requires_grad
    assert lesson.loss.item() == pytest.approx(F.cross_entropy(logits, batch.labels).item())


@pytest.mark.parametrize("through", [False, True])
def test_the_gradient_of_the_exit_stops_at_the_trunk_unless_asked_on(student, batch, through):
    teacher = exit_after(through_trunk=through)
    signals = student.signals(batch.images, ["stages", "logits"])
    teacher.teach(batch=batch, student=signals, needs=["logits"]).loss.backward()
    assert all(p.grad is not None for p in teacher.parameters())
    reached = [any(p.grad is not None for p in stage.parameters()) for stage in student.trunk.stages]
    assert reached == [through, through, False, False]


def test_the_term_pulls_the_top_and_not_the_exit(student, batch):
    teacher = exit_after()
    objective = learning(teacher)
    objective.start_epoch(student, 2, 3)
    losses = objective(student.signals(batch.images, objective.student_needs), batch)
    losses.distill["b8"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.classes.weight.grad.abs().sum() > 0


BAD = {
    "no temperature": (
        lambda: AmbiguityDistillation(temperature=0),
        "temperature must be a finite number above 0, got 0",
    ),
    "margin of 1": (
        lambda: AmbiguityDistillation(margin=1),
        "margin must be a number of at least 0 and below 1, got 1",
    ),
    "margin below 0": (lambda: AmbiguityDistillation(margin=-0.1), "margin must be .*got -0.1"),
    "the deepest stage": (lambda: exit_after(stage=3), "stage must be an inner one, 0 to 2, got 3"),
    "no width": (lambda: exit_after(width=0), "width must be at least 1, got 0"),
    "other classes": (
        lambda: AmbiguityDistillation()(
            student=torch.zeros(2, 3), teacher=torch.zeros(2, 4), labels=torch.zeros(2, dtype=torch.long)
        ),
        "same images and classes",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
