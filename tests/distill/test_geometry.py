"""Class geometry as a teacher: its posterior against a loop over classes, SKD's loss, facts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dmlkd.distill import ClassGeometryTeacher, neighbour_logits, skd
from dmlkd.models import ClassHead
from dmlkd.signals import Batch, Signals

SIZES = st.tuples(st.integers(1, 8), st.integers(2, 9), st.integers(0, 2**20))


def unit_rows(classes, dim, seed):
    rows = torch.randn(classes, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(rows, dim=1)


def naive_neighbours(weights, y, neighbours, sigma):
    distance = {k: math.dist(weights[y].tolist(), w.tolist()) for k, w in enumerate(weights) if k != y}
    nearest = sorted(distance, key=distance.get)[:neighbours]
    total = sum(math.exp(-distance[k] / sigma) for k in nearest)
    return [math.exp(-distance[k] / sigma) / total if k in nearest else 0.0 for k in range(len(weights))]


class Weights:
    def __init__(self, weights):
        self.weights = weights

    def class_weights(self):
        return self.weights


def taught(weights, labels, **options):
    teacher = ClassGeometryTeacher(class_scores=Weights(weights), **options)
    batch = Batch(torch.zeros(len(labels), 1, 2, 2), labels, torch.arange(len(labels)))
    return teacher.teach(batch=batch, student=Signals(torch.ones(len(labels), 2)), needs=["logits"])


@given(SIZES, st.integers(1, 12), st.floats(0.05, 3))
def test_the_posterior_is_that_of_a_loop_over_the_other_classes(sizes, neighbours, sigma):
    size, classes, seed = sizes
    weights, labels = unit_rows(classes, 4, seed), torch.arange(size) % classes
    (signals,) = taught(weights, labels, neighbours=neighbours, sigma=sigma).signals
    for found, y in zip(signals.logits.softmax(dim=1), labels.tolist(), strict=True):
        assert found.tolist() == pytest.approx(naive_neighbours(weights, y, neighbours, sigma), rel=1e-6, abs=1e-9)


@given(SIZES, st.floats(0, 1))
def test_skd_is_the_cross_entropy_with_the_mixed_target_in_value_and_gradient(sizes, share):
    size, classes, seed = sizes
    weights, labels = unit_rows(classes, 4, seed), torch.arange(size) % classes
    student = (3 * unit_rows(size, classes, seed + 1)).requires_grad_()
    (signals,) = taught(weights, labels, neighbours=3, sigma=0.5).signals
    loss = skd(share=share)(student=student, teacher=signals.logits, labels=labels)
    loss.backward()
    expected, gradient = 0.0, torch.zeros(size, classes, dtype=torch.float64)
    for i, y in enumerate(labels.tolist()):
        q, powers = naive_neighbours(weights, y, 3, 0.5), [math.exp(o) for o in student[i].tolist()]
        for c in range(classes):
            t, p = (1 - share) * (c == y) + share * q[c], powers[c] / sum(powers)
            expected -= t * math.log(p) / size
            gradient[i, c] = (p - t) / size
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert torch.allclose(student.grad, gradient, rtol=1e-5, atol=1e-8)


def test_the_label_is_never_its_own_neighbour_and_the_order_of_the_batch_changes_nothing():
    weights, labels = unit_rows(6, 3, 0), torch.tensor([0, 3, 3, 5])
    logits = neighbour_logits(weights, labels, neighbours=3, sigma=0.1)
    assert (logits.gather(1, labels[:, None]) == -torch.inf).all()
    assert (logits.isfinite().sum(dim=1) == 3).all()
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(neighbour_logits(weights, labels[order], neighbours=3, sigma=0.1), logits[order])


def test_classes_that_lie_on_one_another_share_alike():
    logits = neighbour_logits(torch.ones(4, 2), torch.tensor([1]), neighbours=10, sigma=0.1)
    assert logits.softmax(dim=1).tolist() == [pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])]


def test_it_reads_the_weights_as_they_are_now_without_gradient_and_does_not_hold_them():
    head = ClassHead(dim=4, classes=5)
    teacher = ClassGeometryTeacher(class_scores=head, neighbours=2)
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.tensor([0, 4]), torch.arange(2))
    said = []
    for _ in range(2):
        (signals,) = teacher.teach(batch=batch, student=Signals(torch.ones(2, 4)), needs=["logits"]).signals
        assert not signals.logits.requires_grad
        said.append(signals.logits)
        nn.init.normal_(head.weight)
    assert not torch.equal(*said)
    assert teacher.ready
    assert not list(teacher.parameters())
    assert not teacher.state_dict()


def test_half_precision_weights_are_compared_in_single_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert neighbour_logits(unit_rows(4, 3, 0).bfloat16(), torch.tensor([0]), neighbours=2, sigma=1).dtype == (
            torch.float32
        )


BAD = {
    "no neighbours": (lambda: ClassGeometryTeacher(class_scores=Weights(None), neighbours=0), "neighbours .*got 0"),
    "no width": (lambda: ClassGeometryTeacher(class_scores=Weights(None), sigma=0), "sigma must be .*above 0, got 0"),
    "share above 1": (lambda: skd(share=1.5), "share must be a number from 0 to 1, got 1.5"),
    "a single class": (
        lambda: neighbour_logits(torch.ones(1, 2), torch.tensor([0]), neighbours=1, sigma=1),
        "at least 2 classes, got 1",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
