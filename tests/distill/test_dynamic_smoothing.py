"""Dynamic label smoothing against a loop over epochs and images; what is known of its amount, and of bad arguments."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dmlkd import Batch, Objective, Signals
from dmlkd.distill import DynamicSmoothing
from dmlkd.training import Term

EPOCHS = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4)


def logits(size, classes, seed):
    return 3 * torch.randn(size, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(EPOCHS, st.integers(2, 5), st.floats(0, 1))
def test_value_and_gradient_are_those_of_a_loop_over_epochs_and_images(epochs, classes, epsilon):
    method, seed, accuracy = DynamicSmoothing(epsilon=epsilon), 0, 0.0
    for epoch, sizes in enumerate(epochs):
        method.start_epoch(epoch, len(epochs))
        smoothing = epsilon * (1 - accuracy)
        assert method.smoothing == pytest.approx(smoothing)
        right, taught = 0, 0
        for size in sizes:
            seed += 1
            student, labels = logits(size, classes, seed).requires_grad_(), torch.arange(size) % classes
            found = method(student=student, labels=labels)
            (gradient,) = torch.autograd.grad(found, student)
            expected = 0.0
            for i, label in enumerate(labels.tolist()):
                powers = [math.exp(score) for score in student[i].tolist()]
                p = [power / sum(powers) for power in powers]
                right, taught = right + (p[label] == max(p)), taught + 1
                target = [(1 - smoothing) * (c == label) + smoothing / classes for c in range(classes)]
                assert sum(target) == pytest.approx(1)
                expected -= sum(t * math.log(s) for t, s in zip(target, p, strict=True)) / size
                slope = [(s - t) / size for t, s in zip(target, p, strict=True)]
                assert gradient[i].tolist() == pytest.approx(slope, abs=1e-6)  # shares are float32
            assert found.item() == pytest.approx(expected, rel=1e-5, abs=2e-6)
        accuracy = right / taught


def test_the_first_epoch_is_label_smoothing():
    student, labels = logits(6, 4, 0).float(), torch.arange(6) % 4
    found = DynamicSmoothing(epsilon=0.1)(student=student, labels=labels)
    torch.testing.assert_close(found, F.cross_entropy(student, labels, label_smoothing=0.1))


def test_after_an_epoch_without_a_mistake_the_target_is_the_label():
    method, labels = DynamicSmoothing(epsilon=0.5), torch.arange(3)
    method.start_epoch(0, 2)
    method(student=torch.eye(3), labels=labels)
    method.start_epoch(1, 2)
    student = logits(3, 3, 0).float()
    torch.testing.assert_close(method(student=student, labels=labels), F.cross_entropy(student, labels))


def test_an_epoch_without_a_step_leaves_the_amount_as_it_was():
    method = DynamicSmoothing(epsilon=0.5)
    method.start_epoch(0, 3)
    method(student=torch.eye(2), labels=torch.tensor([0, 0]))
    for epoch in (1, 2):
        method.start_epoch(epoch, 3)
        assert method.smoothing == 0.25


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_objective_restored_within_an_epoch_goes_on_the_same(steps):
    """As a trainer does: the state is loaded, then the epoch at hand is begun again."""

    def made():
        return Objective(lambda z, y, i: z.sum() * 0, [Term(DynamicSmoothing(epsilon=0.5), name="smoothing")])

    def step(objective, seed):
        labels = torch.arange(5) % 3
        batch = Batch(torch.zeros(5, 1, 1, 1), labels, torch.arange(5))
        return objective(Signals(torch.ones(5, 1), logits=logits(5, 3, seed)), batch).total

    network, unbroken, restored = torch.nn.Identity(), made(), made()
    for epoch in (0, 1):
        unbroken.start_epoch(network, epoch, 3)
        for number in range(2 if epoch == 0 else steps):
            step(unbroken, 10 * epoch + number)
    restored.load_state_dict(unbroken.state_dict())
    restored.start_epoch(network, 1, 3)
    for objective in (unbroken, restored):
        for number in range(steps, 2):
            step(objective, 10 + number)
        objective.start_epoch(network, 2, 3)
    amounts = [objective.terms[0].method.smoothing for objective in (unbroken, restored)]
    assert amounts[0] == amounts[1] not in (0, 0.5)
    assert torch.equal(step(unbroken, 20), step(restored, 20))


BAD = {
    "negative": (lambda: DynamicSmoothing(epsilon=-0.1), "epsilon must be a number from 0 to 1, got -0.1"),
    "above 1": (lambda: DynamicSmoothing(epsilon=1.5), "epsilon must be a number from 0 to 1, got 1.5"),
    "not a number": (lambda: DynamicSmoothing(epsilon="0.1"), "epsilon must be a number from 0 to 1, got '0.1'"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
