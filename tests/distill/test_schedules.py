"""Schedules at the first, the last and the only epoch."""

import pytest

from dmlkd.distill import After, Constant, Cosine, LinearRamp, Schedule, WarmUp

ALL = [After(epochs=3), LinearRamp(), Constant(), WarmUp(epochs=3), Cosine()]


@pytest.mark.parametrize(
    ("schedule", "first", "last", "only"),
    [
        (LinearRamp(), 0.0, 0.9, 0.0),
        (Constant(), 1.0, 1.0, 1.0),
        (WarmUp(epochs=3), 0.0, 1.0, 0.0),
        (WarmUp(epochs=12), 0.0, 0.75, 0.0),
        (After(epochs=9), 0.0, 1.0, 0.0),
        (After(epochs=10), 0.0, 0.0, 0.0),
        (Cosine(), 0.0, 1.0, 0.0),
        (Cosine(start=1.0, end=0.1), 1.0, 0.1, 1.0),
    ],
)
def test_factor_of_the_first_the_last_and_the_only_epoch(schedule: Schedule, first: float, last: float, only: float):
    assert schedule(0, 10) == first
    assert schedule(9, 10) == pytest.approx(last)
    assert schedule(0, 1) == only


@pytest.mark.parametrize("schedule", ALL)
def test_rises_or_stays_and_is_never_negative(schedule: Schedule):
    factors = [schedule(e, 12) for e in range(12)]
    assert factors == sorted(factors)
    assert min(factors) >= 0


@pytest.mark.parametrize(("epoch", "epochs"), [(-1, 5), (5, 5), (0, 0)])
@pytest.mark.parametrize("schedule", ALL)
def test_an_epoch_that_does_not_exist_is_refused(schedule: Schedule, epoch: int, epochs: int):
    with pytest.raises(ValueError, match=f"epoch must be in 0 .. {epochs - 1}, got {epoch}"):
        schedule(epoch, epochs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmUp(epochs=0), "epochs must be a whole number of at least 1, got 0"),
        (lambda: WarmUp(epochs=2.5), "epochs must be a whole number of at least 1, got 2.5"),
        (lambda: After(epochs=0), "epochs must be a whole number of at least 1, got 0"),
        (lambda: Cosine(start=-1), "start must be a finite number of at least 0, got -1"),
        (lambda: Cosine(end=float("inf")), "end must be a finite number of at least 0, got inf"),
    ],
)
def test_a_bad_number_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
