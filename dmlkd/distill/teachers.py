"""Teachers: where soft targets come from. All are frozen; none gives its weights to an optimiser."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from dmlkd.distill.checks import one_of
from dmlkd.signals import Batch, Need, Signals

_BY_HAND = -1


class Teacher(nn.Module, ABC):
    """Base of the teachers. Its state is in ``state_dict()``, and so in the checkpoint of whatever holds it."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether there is something to teach yet; a term whose teacher is not ready has weight 0."""

    @abstractmethod
    def signals(self, batch: Batch, needs: Collection[Need]) -> Signals:
        """What the teacher says of a batch, without gradient; fields outside ``needs`` may be None."""

    def start_epoch(self, network: nn.Module, epoch: int) -> None:
        """Called before each epoch, counted from 0, with the student as it is then. May be called twice for one."""


class PreviousEpochTeacher(Teacher):
    """The student as it was at the end of the previous epoch (method A1, https://arxiv.org/abs/2206.08880).

    One copy of the network is held in memory and written over once an epoch; nothing is written to disk. In a loop of
    your own, call the teacher on the images and :meth:`update` it at the end of each epoch. The copy stays in its mode
    whatever ``train()`` is called on what holds it, and its parameters ask for no gradient.

    Args:
        network: the student; it is copied. Its weights at this moment teach until the first update.
        mode: "eval" or "train", the mode the copy runs in. In the published code it is "train", with batch norm
            frozen; with live batch norm, "train" normalises by the batch and moves the copy's running statistics.

    Raises:
        ValueError: if ``mode`` is neither.

    >>> student = nn.Linear(2, 2)
    >>> teacher = PreviousEpochTeacher(student)
    >>> teacher.ready
    False
    >>> teacher.update(student)
    >>> teacher.ready, teacher(torch.ones(1, 2)).requires_grad
    (True, False)
    """

    def __init__(self, network: nn.Module, *, mode: Literal["eval", "train"] = "eval") -> None:
        super().__init__()
        self.mode = one_of("mode", mode, ("eval", "train"))
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._updated_for: int | None = None
        self.train()

    @property
    @override
    def ready(self) -> bool:
        return self._updated_for is not None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """What the copied network returns for the images, without gradient."""
        return self.network(images)

    @override
    @torch.no_grad()
    def signals(self, batch: Batch, needs: Collection[Need]) -> Signals:
        signals: Signals = self.network.signals(batch.images, needs)  # type: ignore[operator]
        return signals

    def update(self, network: nn.Module) -> None:
        """Take over the network's weights and buffers as they are now: call it at the end of an epoch."""
        self._copy(network, _BY_HAND if self._updated_for is None else self._updated_for)

    @override
    def start_epoch(self, network: nn.Module, epoch: int) -> None:
        # Once for each epoch after the first, so that a run resumed within an epoch keeps the teacher it had.
        if epoch > 0 and epoch != self._updated_for:
            self._copy(network, epoch)

    def _copy(self, network: nn.Module, epoch: int) -> None:
        self.network.load_state_dict(network.state_dict())
        self._updated_for = epoch

    @override
    def train(self, mode: bool = True) -> "PreviousEpochTeacher":
        """Stay in the mode given to the constructor."""
        return super().train(self.mode == "train")

    @override
    def get_extra_state(self) -> dict[str, int | None]:
        return {"updated_for": self._updated_for}

    @override
    def set_extra_state(self, state: dict[str, int | None]) -> None:
        self._updated_for = state["updated_for"]
