"""Remembered posteriors: how exactly half precision keeps them, and what is left of them with the k largest classes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dmlkd.distill import PosteriorMemory
from dmlkd.distill.memory import last_of_each

ROWS = 6
storage = pytest.mark.parametrize("limit", [0, 2**20], ids=["mapped", "in memory"])


def posteriors(classes: int, seed: int, scale: float = 3.0, rows: int = ROWS) -> torch.Tensor:
    logits = scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))
    return F.log_softmax(logits, dim=1)


def naive_top_k(logs: torch.Tensor, k: int) -> list[float]:
    p = [math.exp(value) for value in logs.double().tolist()]
    order = sorted(range(len(p)), key=lambda c: -p[c])
    rest = sum(p[c] for c in order[k:]) / max(len(p) - k, 1)
    return [p[c] if c in order[:k] else rest for c in range(len(p))]


@given(st.integers(2, 300), st.integers(0, 1000), st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0, 60.0]))
def test_half_precision_keeps_a_posterior_to_a_thousandth_of_its_entropy(classes, seed, scale):
    memory, logs = PosteriorMemory(rows=ROWS, classes=classes), posteriors(classes, seed, scale)
    memory.write(torch.arange(ROWS), logs)
    kept, known = memory.read(torch.arange(ROWS))
    assert known.all()
    p = logs.double().exp()
    entropy = -(p * logs.double()).sum(dim=1)
    error = (kept.double().exp() - p).abs().sum(dim=1)
    assert (error <= 2**-10 * entropy + 1e-6).all()
    assert torch.allclose(kept.exp().sum(dim=1), torch.ones(ROWS), atol=1e-5)


def test_half_precision_keeps_probabilities_too_small_for_it():
    memory = PosteriorMemory(rows=1, classes=2)
    memory.write(torch.tensor([0]), torch.tensor([[0.0, -30.0]]))
    assert memory.read(torch.tensor([0]))[0][0, 1].item() == pytest.approx(-30, rel=1e-3)


def test_single_precision_keeps_a_posterior_to_rounding():
    memory, logs = PosteriorMemory(rows=ROWS, classes=50, single=True), posteriors(50, 0)
    memory.write(torch.arange(ROWS), logs)
    assert torch.allclose(memory.read(torch.arange(ROWS))[0], logs, rtol=1e-6, atol=1e-6)


@given(st.integers(2, 40), st.integers(1, 39), st.integers(0, 1000))
def test_the_k_largest_are_kept_and_the_rest_is_spread_evenly(classes, k, seed):
    k = min(k, classes - 1)
    memory, logs = PosteriorMemory(rows=ROWS, classes=classes, top_k=k, single=True), posteriors(classes, seed)
    memory.write(torch.arange(ROWS), logs)
    expected = torch.tensor([naive_top_k(row, k) for row in logs])
    torch.testing.assert_close(memory.read(torch.arange(ROWS))[0].exp(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("k", [5, 9])
def test_as_many_as_there_are_classes_is_the_whole_posterior(k):
    whole, every = PosteriorMemory(rows=ROWS, classes=5), PosteriorMemory(rows=ROWS, classes=5, top_k=k)
    for memory in (whole, every):
        memory.write(torch.arange(ROWS), posteriors(5, 0))
    assert torch.equal(whole.read(torch.arange(ROWS))[0], every.read(torch.arange(ROWS))[0])
    assert whole.bytes == every.bytes == ROWS * 5 * 2


@storage
@pytest.mark.parametrize("top_k", [None, 3])
def test_the_state_holds_all_of_it_mapped_or_not(limit, top_k):
    memory, other, elsewhere = (
        PosteriorMemory(rows=ROWS, classes=7, top_k=top_k, mapped_above=above) for above in (limit, limit, 2**20)
    )
    tables = [table for table in (memory.logs, memory.which) if table is not None]
    assert all(table.mapped == (limit == 0) for table in tables)
    memory.write(torch.tensor([4, 1]), posteriors(7, 0, rows=2))
    other.load_state_dict(memory.state_dict())
    elsewhere.write(torch.tensor([4, 1]), posteriors(7, 0, rows=2))
    for restored in (other, elsewhere):
        for a, b in zip(memory.read(torch.arange(ROWS)), restored.read(torch.arange(ROWS)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("top_k", "single"), [(None, False), (None, True), (3, False), (3, True)])
def test_its_size_is_that_of_the_docstring_and_both_tables_are_mapped_above_it(top_k, single):
    size = {(None, False): 7 * 2, (None, True): 7 * 4, (3, False): 6 * 3 + 2, (3, True): 8 * 3 + 4}[top_k, single]
    memory, mapped = (
        PosteriorMemory(rows=ROWS, classes=7, top_k=top_k, single=single, mapped_above=ROWS * size - less)
        for less in (0, 1)
    )
    assert memory.bytes == ROWS * size
    tables = [(a, b) for a, b in ((memory.logs, mapped.logs), (memory.which, mapped.which)) if a is not None]
    assert sum(table.values.nbytes for table, _ in tables) == ROWS * size
    assert not any(table.mapped for table, _ in tables)
    assert all(table.mapped for _, table in tables)


@pytest.mark.parametrize("top_k", [None, 2])
def test_of_a_row_written_twice_at_once_the_last_is_kept(top_k):
    memory, logs = PosteriorMemory(rows=ROWS, classes=4, top_k=top_k), posteriors(4, 0, rows=4)
    memory.write(torch.tensor([2, 0, 2, 2]), logs)
    alone = PosteriorMemory(rows=ROWS, classes=4, top_k=top_k)
    alone.write(torch.tensor([2, 0]), logs[[3, 1]])
    assert torch.equal(memory.read(torch.arange(ROWS))[0], alone.read(torch.arange(ROWS))[0])


@given(st.lists(st.integers(0, 4), max_size=12))
def test_the_last_place_of_each_row_is_that_of_a_loop(rows):
    last = {row: place for place, row in enumerate(rows)}
    assert last_of_each(torch.tensor(rows, dtype=torch.long)).tolist() == [last[row] for row in rows]


@pytest.mark.parametrize("top_k", [None, 2])
def test_rows_never_written_are_uniform_and_said_to_be_unknown(top_k):
    memory = PosteriorMemory(rows=2, classes=4, top_k=top_k)
    logs, known = memory.read(torch.arange(2))
    assert not known.any()
    assert torch.allclose(logs.exp(), torch.full((2, 4), 0.25))


BAD = {
    "no rows": (lambda: PosteriorMemory(rows=0, classes=2), "rows must be a whole number of at least 1, got 0"),
    "no classes": (lambda: PosteriorMemory(rows=1, classes=0), "classes must be a whole number of at least 1, got 0"),
    "no class kept": (
        lambda: PosteriorMemory(rows=1, classes=2, top_k=0),
        "top_k must be a whole number of at least 1, got 0",
    ),
    "negative limit": (
        lambda: PosteriorMemory(rows=1, classes=2, mapped_above=-1),
        "mapped_above must be at least 0 bytes, got -1",
    ),
    "other classes": (
        lambda: PosteriorMemory(rows=1, classes=2).write(torch.tensor([0]), torch.zeros(1, 3)),
        r"posteriors must be \(1, 2\) log-probabilities, got \(1, 3\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
