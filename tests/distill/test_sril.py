"""Selective regularisation against a loop over images; what it does to the weights at the end of an epoch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dmlkd import Batch, EmbeddingModel
from dmlkd.distill import (
    FrozenTeacher,
    PartnerTeacher,
    SelectiveRegularization,
    agreeing,
    embedding_distance,
    interpolate,
)
from dmlkd.models import ClassHead, ClassifyingModel
from dmlkd.signals import Signals
from dmlkd.training import Objective, Term

SIZES = st.tuples(st.integers(1, 8), st.integers(2, 5), st.integers(0, 2**20))


def drawn(size, dim, seed):
    return torch.randn(size, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(size, dim, seed):
    return F.normalize(drawn(size, dim, seed), dim=1)


@given(SIZES)
def test_value_and_gradient_are_those_of_a_loop_over_images(sizes):
    student, teacher = unit(*sizes).requires_grad_(), unit(*sizes[:2], sizes[2] + 1).requires_grad_()
    metric_gradient, old = drawn(*sizes[:2], sizes[2] + 2), torch.arange(sizes[0]) % 3 == 0
    loss = SelectiveRegularization()(student=student, teacher=teacher, old=old, metric_gradient=metric_gradient)
    loss.backward()
    expected, gradient = 0.0, torch.zeros_like(student)
    for i in range(sizes[0]):
        z, t, g = (part[i].tolist() for part in (student, teacher, metric_gradient))
        cosine = sum(a * b for a, b in zip(z, t, strict=True))
        pull = [2 * (cosine * a - b) for a, b in zip(z, t, strict=True)]
        if i % 3 and sum(a * b for a, b in zip(g, pull, strict=True)) < 0:
            continue
        for d in range(sizes[1]):
            expected += (z[d] - t[d]) ** 2 / sizes[0]
            gradient[i, d] = 2 * (z[d] - t[d]) / sizes[0]
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert torch.allclose(student.grad, gradient, atol=1e-12)
    assert teacher.grad is None


def test_old_images_are_held_whatever_the_metric_loss_wants_and_new_ones_only_where_it_agrees():
    student, teacher = unit(6, 4, 0), unit(6, 4, 1)
    toward = student.clone().requires_grad_()
    F.cosine_similarity(toward, teacher).sum().neg().backward()  # the gradient of a loss that falls toward the teacher
    for gradient, new in ((toward.grad, True), (-toward.grad, False), (torch.zeros_like(student), True)):
        assert (agreeing(student=student, teacher=teacher, metric_gradient=gradient) == new).all()
        for old in (True, False):
            loss = SelectiveRegularization()(
                student=student, teacher=teacher, old=torch.full((6,), old), metric_gradient=gradient
            )
            whole = embedding_distance(student=student, teacher=teacher)
            assert loss == (whole if old or new else 0)


def test_a_pull_along_the_embedding_itself_counts_for_nothing():
    student, teacher, gradient = unit(5, 4, 0), unit(5, 4, 1), drawn(5, 4, 2)
    plain = agreeing(student=student, teacher=teacher, metric_gradient=gradient)
    tangent = gradient - (gradient * student).sum(dim=1, keepdim=True) * student
    assert torch.equal(agreeing(student=student, teacher=teacher, metric_gradient=tangent + 5 * student), plain)


def confidences(logits, labels, known):
    found = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        powers = {c: math.exp(row[c]) for c in known}
        found.append(powers.get(label, 0) / sum(powers.values()))
    return found


def test_the_share_is_what_old_images_lost_of_their_confidence_among_classes_that_the_teacher_knows():
    method, labels, old = SelectiveRegularization(interpolation=0.5), torch.tensor([0, 1, 2, 0]), [1, 1, 0, 1]
    student, teacher = drawn(4, 3, 0), drawn(4, 3, 1) + 4 * F.one_hot(labels, 3)
    teacher[:, 2] = -torch.inf
    for part in (slice(0, 2), slice(2, 4)):
        method.watch(
            student=student[part], teacher=teacher[part], labels=labels[part], old=torch.tensor(old[part]).bool()
        )
    mine, theirs = (
        sum(c for c, o in zip(confidences(part, labels, (0, 1)), old, strict=True) if o) for part in (student, teacher)
    )
    assert mine < theirs
    assert method.share == pytest.approx(0.5 * (1 - mine / theirs), rel=1e-5)


def test_nothing_is_taken_back_where_confidence_rose_or_nothing_old_was_seen():
    method, labels, old = SelectiveRegularization(), torch.tensor([0, 1]), torch.tensor([True, True])
    assert method.share == 0
    method.watch(student=drawn(2, 3, 0), teacher=drawn(2, 3, 1) + 9, labels=labels, old=~old)
    assert method.share == 0
    method.watch(student=9.0 * F.one_hot(labels, 3), teacher=torch.zeros(2, 3), labels=labels, old=old)
    assert method.share == 0


def network(dim=8, width=4):
    model = EmbeddingModel(in_channels=1, dim=dim, backbone_args={"width": width})
    return ClassifyingModel(model, ClassHead(dim=dim, classes=3))


def test_weights_and_running_statistics_go_their_share_toward_the_teachers_but_not_class_weights():
    student, teacher = network(), network()
    teacher.classes = torch.nn.Identity()  # a finished run's have other names
    with torch.no_grad():
        teacher.model(torch.rand(8, 1, 8, 8))
        teacher.model.train()(torch.rand(8, 1, 8, 8))
    before, there = ({k: v.clone() for k, v in n.state_dict().items()} for n in (student, teacher))
    interpolate(student, teacher, 0.25)
    moved = 0
    for name, value in student.state_dict().items():
        if name in there and value.is_floating_point():
            assert torch.allclose(value, 0.75 * before[name] + 0.25 * there[name], atol=1e-6)
            moved += not torch.equal(before[name], there[name])
        else:
            assert torch.equal(value, before[name])
    assert moved > 4
    assert torch.equal(student.classes.weight, before["classes.weight"])


def step(objective, student, rows=(0, 1, 2, 3)):
    batch = Batch(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]), torch.tensor(rows))
    return objective(student.signals(batch.images, objective.student_needs), batch)


def taught(**arguments):
    from pytorch_metric_learning.losses import ContrastiveLoss

    student, teacher = network(), network()
    method = SelectiveRegularization(dim=8, network=student, replayed=np.array([0, 2, 3]), **arguments)
    objective = Objective(ContrastiveLoss(), [Term(method, FrozenTeacher(teacher), name="sril")])
    objective.start_epoch(student, 0, 2)
    return student, objective, method, teacher


def test_the_objective_gives_it_the_gradient_of_the_metric_loss_and_asks_no_network_for_it():
    student, objective, method, _ = taught()
    assert "metric_gradient" not in objective.student_needs
    seen = {}
    method.register_forward_pre_hook(lambda _, __, named: seen.update(named), with_kwargs=True)
    batch = Batch(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]), torch.tensor([5, 2, 1, 0]))
    signals = student.signals(batch.images, objective.student_needs)
    losses = objective(signals, batch)
    expected = torch.autograd.grad(losses.metric, signals.embeddings, retain_graph=True)[0]
    assert torch.equal(seen["metric_gradient"], expected)
    assert expected.abs().sum() > 0
    assert seen["old"].tolist() == [False, True, False, True]
    losses.total.backward()
    assert student.model.head.weight.grad.abs().sum() > 0


def test_a_metric_loss_that_is_not_computed_has_no_gradient_and_agrees_with_everything():
    student, _, method, teacher = taught()
    objective = Objective(lambda *_: 1 / 0, [Term(method, FrozenTeacher(teacher), name="sril")], metric_weight=0)
    losses = step(objective, student)
    assert losses.distill["sril"] > 0


def test_the_end_of_an_epoch_moves_the_student_and_forgets_what_it_saw():
    student, objective, method, teacher = taught()
    with torch.no_grad():
        teacher.classes.weight.copy_(F.one_hot(torch.tensor([0, 1, 2]), 8)[:, None] * 1.0)
    step(objective, student)
    method.get_buffer("_confidence").copy_(torch.tensor([1.0, 2.0]))
    before, there = student.model.head.weight.clone(), teacher.model.head.weight
    objective.end_epoch(student)
    assert torch.allclose(student.model.head.weight, (before + there) / 2, atol=1e-6)
    assert method.share == 0
    after = student.model.head.weight.clone()
    objective.end_epoch(student)
    assert torch.equal(student.model.head.weight, after)


def test_what_it_saw_of_an_epoch_is_in_its_state_and_the_rows_are_not():
    _, _, method, _ = taught()
    method.get_buffer("_confidence").copy_(torch.tensor([1.0, 2.0]))
    other = SelectiveRegularization()
    other.load_state_dict(method.state_dict())
    assert other.share == method.share == 0.5


BAD = {
    "interpolation": (lambda: SelectiveRegularization(interpolation=1.5), "interpolation must be a number from 0 to 1"),
    "dim": (lambda: SelectiveRegularization(dim=0), "dim must be a whole number of at least 1, got 0"),
    "no network": (
        lambda: SelectiveRegularization().check_teacher(PartnerTeacher()),
        "weights go toward a network's, and PartnerTeacher is none",
    ),
    "other dimension": (
        lambda: Term(SelectiveRegularization(dim=8), FrozenTeacher(network(6))),
        "the teacher's have 6, the student's 8",
    ),
    "other architecture": (
        lambda: Term(SelectiveRegularization(network=network()), FrozenTeacher(network(width=6))),
        "must be of the student's architecture",
    ),
    "other classes": (
        lambda: SelectiveRegularization().watch(
            student=torch.zeros(2, 3), teacher=torch.zeros(2, 4), labels=torch.zeros(2).long(), old=torch.ones(2).bool()
        ),
        "same images and classes",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_signals_carry_the_gradient_through_a_choice_of_positions():
    signals = Signals(torch.eye(3), metric_gradient=torch.arange(9.0).reshape(3, 3))
    assert torch.equal(signals.take(torch.tensor([2])).metric_gradient, torch.tensor([[6.0, 7.0, 8.0]]))
