"""Schedules at the first, the last and the only epoch."""

import pytest

from dmlkd.distill import Constant, LinearRamp, Schedule


@pytest.mark.parametrize(
    ("schedule", "epoch", "epochs", "factor"),
    [
        (LinearRamp(), 0, 10, 0.0),
        (LinearRamp(), 9, 10, 0.9),
        (LinearRamp(), 0, 1, 0.0),
        (Constant(), 0, 10, 1.0),
        (Constant(), 9, 10, 1.0),
        (Constant(), 0, 1, 1.0),
    ],
)
def test_factor(schedule: Schedule, epoch: int, epochs: int, factor: float):
    assert schedule(epoch, epochs) == factor


@pytest.mark.parametrize(("epoch", "epochs"), [(-1, 5), (5, 5), (0, 0)])
@pytest.mark.parametrize("schedule", [LinearRamp(), Constant()])
def test_an_epoch_that_does_not_exist_is_refused(schedule: Schedule, epoch: int, epochs: int):
    with pytest.raises(ValueError, match=f"epoch must be in 0 .. {epochs - 1}, got {epoch}"):
        schedule(epoch, epochs)
