"""PS-KD against a loop over epochs and images, and what the remembered posterior is when."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dmlkd import Batch, Objective, Signals
from dmlkd.distill import LinearRamp, PosteriorDistillation, RememberedPosteriorTeacher, ps_kd
from dmlkd.training import Term

ROWS, CLASSES = 8, 5
LABELS = torch.arange(ROWS) % CLASSES


def batch_of(rows: list[int], labels: torch.Tensor = LABELS) -> Batch:
    return Batch(torch.zeros(len(rows), 1, 1, 1), labels[rows], torch.tensor(rows))


def said(logits: torch.Tensor) -> Signals:
    return Signals(torch.ones(len(logits), 1), logits=logits)


def drawn(rows: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed))


def naive_posterior(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def in_half(p: list[float]) -> list[float]:
    """A posterior whose logarithms were kept in half precision."""
    return naive_posterior(torch.tensor(p, dtype=torch.double).log().half().double().tolist())


def plain(teacher: RememberedPosteriorTeacher) -> Objective:
    return Objective(lambda z, y, i: z.sum() * 0, [Term(ps_kd(), teacher, name="ps_kd")])


@pytest.mark.parametrize("epochs", [1, 4])
def test_loss_and_gradient_are_those_of_a_loop_over_epochs_and_images(epochs):
    """Each image's logits are weights of their own, moved by plain gradient steps; each epoch has its own order."""
    weights = drawn(ROWS, 0).requires_grad_()
    naive = weights.detach().double().tolist()
    objective = plain(RememberedPosteriorTeacher(rows=ROWS, classes=CLASSES))
    before: dict[int, list[float]] = {}
    for epoch in range(epochs):
        objective.start_epoch(torch.nn.Identity(), epoch, epochs)
        now: dict[int, list[float]] = {}
        share = 0.8 * (epoch + 1) / epochs
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).tolist()
        for rows in (order[:3], order[3:]):
            losses = objective(said(weights[rows]), batch_of(rows))
            (gradient,) = torch.autograd.grad(losses.total, weights)
            expected = 0.0
            for row in rows:
                p, label = naive_posterior(naive[row]), int(LABELS[row])
                earlier = before.get(row, [float(c == label) for c in range(CLASSES)])
                target = [(1 - share) * (c == label) + share * earlier[c] for c in range(CLASSES)]
                assert sum(target) == pytest.approx(1)
                assert target[label] >= 1 - share
                expected -= sum(t * math.log(s) for t, s in zip(target, p, strict=True)) / len(rows)
                slope = [(s - t) / len(rows) for t, s in zip(target, p, strict=True)]
                assert gradient[row].tolist() == pytest.approx(slope, abs=2e-6)
                now[row] = in_half(p)
                naive[row] = [w - 2 * s for w, s in zip(naive[row], slope, strict=True)]
            assert losses.distill["ps_kd"].item() == pytest.approx(expected, rel=1e-5)
            with torch.no_grad():
                weights -= 2 * gradient
        before = now


def test_epoch_0_is_cross_entropy_with_the_label():
    objective = plain(RememberedPosteriorTeacher(rows=ROWS, classes=CLASSES))
    objective.start_epoch(torch.nn.Identity(), 0, 3)
    logits = drawn(ROWS, 0).requires_grad_()
    losses = objective(said(logits), batch_of(list(range(ROWS))))
    expected = F.cross_entropy(logits, LABELS)
    torch.testing.assert_close(losses.total, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (losses.total, expected)))


@given(st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=5), max_size=8))
def test_an_image_is_taught_by_its_last_visit_and_before_that_by_its_label(batches):
    teacher = RememberedPosteriorTeacher(rows=ROWS, classes=CLASSES)
    remembered: dict[int, list[float]] = {}
    for number, rows in enumerate(batches):
        logits = drawn(len(rows), number)
        (taught,) = teacher.teach(batch=batch_of(rows), student=said(logits), needs=["logits"]).signals
        for place, row in enumerate(rows):
            expected = remembered.get(row, [float(c == LABELS[row]) for c in range(CLASSES)])
            assert taught.logits[place].exp().tolist() == pytest.approx(expected, abs=1e-6)
        remembered |= {row: in_half(naive_posterior(one)) for row, one in zip(rows, logits.tolist(), strict=True)}


def test_no_gradient_reaches_the_student_through_the_memory_and_no_generator_is_drawn_from():
    teacher = RememberedPosteriorTeacher(rows=ROWS, classes=CLASSES, top_k=2)
    generator = torch.get_rng_state()
    logits = drawn(2, 0).requires_grad_()
    for _ in range(2):
        (taught,) = teacher.teach(batch=batch_of([0, 1]), student=said(logits), needs=["logits"]).signals
        assert not taught.logits.requires_grad
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("limit", [0, 2**20])
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_restored_teacher_goes_on_the_same(limit, top_k):
    teacher, restored = (
        RememberedPosteriorTeacher(rows=ROWS, classes=CLASSES, top_k=top_k, mapped_above=limit) for _ in range(2)
    )
    teacher.teach(batch=batch_of([1, 2, 3]), student=said(drawn(3, 0)), needs=())
    restored.load_state_dict(copy.deepcopy(teacher.state_dict()))
    lessons = [t.teach(batch=batch_of([2, 3, 4]), student=said(drawn(3, 1)), needs=()) for t in (teacher, restored)]
    assert torch.equal(*(lesson.signals[0].logits for lesson in lessons))


def test_it_teaches_every_method_that_reads_logits_from_the_first_step():
    teacher = RememberedPosteriorTeacher(rows=ROWS, classes=CLASSES)
    objective = Objective(lambda z, y, i: z.sum() * 0, [Term(PosteriorDistillation(temperature=1), teacher, name="kl")])
    logits = drawn(ROWS, 0).requires_grad_()
    losses = objective(said(logits), batch_of(list(range(ROWS))))
    torch.testing.assert_close(losses.total, F.cross_entropy(logits, LABELS))
    (gradient,) = torch.autograd.grad(losses.total, logits)
    assert gradient.isfinite().all()


def test_the_share_of_ps_kd_grows_to_its_last_epoch():
    method = ps_kd(share=0.6)
    assert (method.share, method.growth) == (0.6, LinearRamp(ends_full=True))


BAD = {
    "share above 1": (lambda: ps_kd(share=1.2), "share must be a number from 0 to 1, got 1.2"),
    "no rows": (
        lambda: RememberedPosteriorTeacher(rows=0, classes=2),
        "rows must be a whole number of at least 1, got 0",
    ),
    "no class kept": (
        lambda: RememberedPosteriorTeacher(rows=2, classes=2, top_k=0),
        "top_k must be a whole number of at least 1, got 0",
    ),
    "negative limit": (
        lambda: RememberedPosteriorTeacher(rows=2, classes=2, mapped_above=-1),
        "mapped_above must be at least 0 bytes, got -1",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
