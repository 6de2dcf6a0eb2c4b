"""What is trained how fast: parameter groups, schedules of the learning rate, a trunk that waits for its head."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from dmlkd.config import TrainConfig
from dmlkd.errors import ConfigError


def parameter_groups(
    parameters: Iterable[nn.Parameter], apart: Iterable[tuple[Iterable[nn.Parameter], float | None]]
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser; parameters that ask for no gradient are in none.

    Args:
        parameters: all of them.
        apart: those with a group of their own, and its learning rate; None: the optimiser's own.

    Returns:
        The group of the rest, then those apart that are not empty.
    """
    groups: list[dict[str, Any]] = []
    taken: set[int] = set()
    for some, rate in apart:
        own = [p for p in some if p.requires_grad]
        taken.update(id(p) for p in own)
        if own:
            groups.append({"params": own} | ({} if rate is None else {"lr": rate}))
    return [{"params": [p for p in parameters if p.requires_grad and id(p) not in taken]}, *groups]


def lr_schedule(train: TrainConfig) -> Callable[[Optimizer], LRScheduler] | None:
    """What makes the schedule of a training section, stepped once an epoch; None: learning rates are constant.

    Raises:
        ConfigError: for a step schedule without its number of epochs, or that number without a step schedule.
    """
    if (train.lr_schedule == "step") != (train.lr_step_epochs is not None):
        message = f"lr_step_epochs goes with lr_schedule: step, got {train.lr_step_epochs} and {train.lr_schedule}"
        raise ConfigError(message, ("train", "lr_step_epochs"))
    if train.lr_schedule == "cosine":
        return functools.partial(CosineAnnealingLR, T_max=train.epochs)
    if train.lr_schedule == "step":
        assert train.lr_step_epochs is not None
        return functools.partial(StepLR, step_size=train.lr_step_epochs, gamma=train.lr_step_factor)
    return None


class WaitingTrunk:
    """Leaves a trunk as it is for some epochs: eval mode, so that batch norm's statistics stay too, and no gradient.

    Args:
        trunk: part of a model in training.
        epochs: for how many of the first epochs.
    """

    def __init__(self, trunk: nn.Module, epochs: int) -> None:
        self._trunk = trunk
        self._epochs = epochs
        self._trained = [p for p in trunk.parameters() if p.requires_grad]

    def start_epoch(self, epoch: int) -> None:
        """Hold the trunk, or let it go on, as befits an epoch, counted from 0."""
        waiting = epoch < self._epochs
        self._trunk.train(not waiting)
        for parameter in self._trained:
            parameter.requires_grad_(not waiting)

    def end(self) -> None:
        """Let the trunk ask for gradients as it did before."""
        for parameter in self._trained:
            parameter.requires_grad_(True)
