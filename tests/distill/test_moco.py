"""Contrast with a queue: value and gradient against loops over pairs, what the queue keeps, facts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dmlkd.distill import MomentumContrast, margin_contrast
from dmlkd.signals import Batch, Signals

SIZES = st.tuples(st.integers(1, 4), st.integers(2, 3), st.integers(1, 9), st.integers(0, 2**20))


def unit(size, dim, seed):
    return F.normalize(torch.randn(size, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def drawn(images, views, keys, seed):
    """Queries, keys and rows of a shuffled batch of views, and a queue with some of their images and empty places."""
    order = torch.randperm(images * views, generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(images).repeat(views)[order]
    queue_rows = torch.randint(-1, images + 3, (keys,), generator=torch.Generator().manual_seed(seed + 1))
    return {
        "student": unit(len(rows), 5, seed),
        "teacher": unit(len(rows), 5, seed + 2),
        "rows": rows,
        "queue": unit(keys, 5, seed + 3),
        "queue_rows": queue_rows,
    }


def naive(given, temperature, margin):
    """The definition, pair by pair; on torch's scalars, so that it has a gradient."""
    losses = []
    for i, z in enumerate(given["student"]):
        for j, key in enumerate(given["teacher"]):
            if i == j or given["rows"][i] != given["rows"][j]:
                continue
            positive = torch.exp((sum(z * key) - margin) / temperature)
            total = positive
            for other, row in zip(given["queue"], given["queue_rows"], strict=True):
                if row >= 0 and row != given["rows"][i]:
                    total = total + torch.exp(sum(z * other) / temperature)
            losses.append(-torch.log(positive / total))
    return sum(losses) / len(losses)


@given(SIZES, st.floats(0.1, 3), st.floats(0, 1.5))
def test_value_and_gradient_are_those_of_a_loop_over_pairs(sizes, temperature, margin):
    given = drawn(*sizes)
    mine, theirs = (given | {"student": given["student"].clone().requires_grad_()} for _ in range(2))
    found, expected = (
        margin_contrast(**mine, temperature=temperature, margin=margin),
        naive(theirs, temperature, margin),
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    if expected.requires_grad:
        found.backward()
        expected.backward()
        assert torch.allclose(mine["student"].grad, theirs["student"].grad, rtol=1e-8, atol=1e-12)


@given(SIZES)
def test_the_order_of_the_batch_and_of_the_queue_is_of_no_account(sizes):
    given = drawn(*sizes)
    batch, queue = (torch.randperm(len(given[name])) for name in ("rows", "queue_rows"))
    moved = {name: value[queue if name.startswith("queue") else batch] for name, value in given.items()}
    assert margin_contrast(**moved).item() == pytest.approx(margin_contrast(**given).item(), rel=1e-9, abs=1e-12)


def test_a_margin_makes_the_same_embeddings_cost_more():
    given = drawn(3, 2, 8, 0)
    costs = [margin_contrast(**given, margin=margin).item() for margin in (0.0, 0.2, 0.4)]
    assert costs[0] < costs[1] < costs[2]


def test_keys_of_the_image_itself_are_no_negatives():
    given = drawn(2, 2, 6, 1) | {"queue_rows": torch.tensor([5, 6, 7, 0, 1, 1])}
    other = given | {"queue": torch.cat([given["queue"][:3], unit(3, 5, 9)])}
    of_first = torch.tensor([4, 4])  # two views of an image that the queue has nothing of
    assert not torch.equal(margin_contrast(**given), margin_contrast(**other))
    own = {"queue_rows": torch.tensor([5, 6, 7, 4, 4, 4]), "rows": of_first}
    two = {name: given[name][:2] for name in ("student", "teacher")}
    assert torch.equal(margin_contrast(**(given | two | own)), margin_contrast(**(other | two | own)))


@pytest.mark.parametrize("empty", ["an empty queue", "no image twice"])
def test_with_nothing_to_compare_loss_and_gradient_are_zero(empty):
    given = drawn(3, 2, 4, 2)
    given |= {"queue_rows": torch.full((4,), -1)} if empty == "an empty queue" else {"rows": torch.arange(6)}
    given["student"].requires_grad_()
    loss = margin_contrast(**given)
    loss.backward()
    assert loss == 0
    assert torch.equal(given["student"].grad, torch.zeros_like(given["student"]))


def test_no_gradient_reaches_the_keys():
    given = drawn(3, 2, 8, 3)
    for name in ("student", "teacher", "queue"):
        given[name].requires_grad_()
    margin_contrast(**given).backward()
    assert given["student"].grad.abs().sum() > 0
    assert given["teacher"].grad is None


def test_half_precision_is_widened():
    given = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in
             drawn(3, 2, 8, 4).items()}  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = margin_contrast(**given)
    wide = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    assert loss.dtype == torch.float32
    assert torch.equal(loss, margin_contrast(**wide))


def step(method, first, count, *, seed=0):
    """One batch of so many images from a row on, each twice."""
    rows = torch.arange(first, first + count).repeat(2)
    keys = unit(2 * count, 3, seed + first).float()
    return method(student=unit(2 * count, 3, seed - first - 1).float(), teacher=keys, rows=rows), keys, rows


def test_the_first_batch_has_no_negatives_and_is_those_of_the_second():
    method = MomentumContrast(dim=3, queue=50)
    loss, keys, rows = step(method, 0, 4)
    assert loss == 0
    again, _, _ = step(method, 10, 4)
    expected = margin_contrast(
        student=unit(8, 3, -11).float(),
        teacher=unit(8, 3, 10).float(),
        rows=torch.arange(10, 14).repeat(2),
        queue=keys,
        queue_rows=rows,
    )
    assert torch.allclose(again, expected)
    assert again > 0


@pytest.mark.parametrize("size", [1, 3, 7, 8, 20, 100])
def test_the_queue_holds_the_newest_keys(size):
    method, seen_keys, seen_rows = MomentumContrast(dim=3, queue=size), [], []
    for first in range(0, 60, 4):
        _, keys, rows = step(method, first, 4)
        seen_keys += keys.tolist()
        seen_rows += rows.tolist()
    held = method.rows >= 0
    found = sorted(zip(method.rows[held].tolist(), method.keys[held].tolist(), strict=True))
    assert found == sorted(zip(seen_rows[-size:], seen_keys[-size:], strict=True))


def test_the_backward_pass_reads_the_queue_as_it_was():
    method = MomentumContrast(dim=3, queue=8)
    step(method, 0, 4)
    student = unit(8, 3, 1).float().requires_grad_()
    method(student=student, teacher=unit(8, 3, 2).float(), rows=torch.arange(4, 8).repeat(2)).backward()
    assert student.grad.abs().sum() > 0


def test_a_queue_goes_on_from_a_checkpoint():
    method, again = (MomentumContrast(dim=3, queue=11) for _ in range(2))
    for first in (0, 4):
        step(method, first, 4)
    again.load_state_dict(method.state_dict())
    for first in (8, 12, 16):
        assert torch.equal(step(method, first, 4)[0], step(again, first, 4)[0])
    assert torch.equal(method.keys, again.keys)


def test_labels_play_no_part():
    rows, z, keys = torch.arange(4).repeat(2), Signals(unit(8, 3, 0)), Signals(unit(8, 3, 1))
    losses = []
    for labels in (torch.zeros(8, dtype=torch.int64), torch.arange(8)):
        method = MomentumContrast(dim=3)
        for _ in range(2):
            loss = method.from_signals(
                batch=Batch(torch.zeros(8, 1), labels, rows + len(losses)), student=z, teacher=keys
            )
        losses.append(loss)
    assert torch.equal(*losses)


BAD = {
    "dim": ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
    "queue": ({"queue": 0}, "queue must be a whole number of at least 1, got 0"),
    "part of a key": ({"queue": 1.5}, "queue must be a whole number of at least 1, got 1.5"),
    "temperature": ({"temperature": 0}, "temperature must be a finite number above 0, got 0"),
    "margin": ({"margin": -0.1}, "margin must be a number of at least 0 and below 2, got -0.1"),
    "wide margin": ({"margin": 2}, "margin must be a number of at least 0 and below 2, got 2"),
    "no number": ({"margin": math.nan}, "margin must be a number"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        MomentumContrast(**{"dim": 3, **arguments})


@pytest.mark.parametrize("wrong", ["student", "queue"])
def test_shapes_that_do_not_fit_are_refused(wrong):
    given = drawn(2, 2, 3, 0)
    with pytest.raises(ValueError, match=r"must both be \(B, D\) and the queue \(K, D\), got \(4, [45]\)"):
        margin_contrast(**(given | {wrong: given[wrong][:, :4]}))
