"""How the weight of a term moves over the epochs: a factor for each epoch, multiplied by the term's weight."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from typing_extensions import override


class Schedule(ABC):
    """A factor for epoch ``epoch`` of ``epochs``."""

    def __call__(self, epoch: int, epochs: int) -> float:
        """Return the factor.

        Args:
            epoch: counted from 0.
            epochs: how many there are in all.

        Raises:
            ValueError: unless 0 <= epoch < epochs.
        """
        if not 0 <= epoch < epochs:
            raise ValueError(f"epoch must be in 0 .. {epochs - 1}, got {epoch}")
        return self.factor(epoch, epochs)

    @abstractmethod
    def factor(self, epoch: int, epochs: int) -> float:
        """The factor, the arguments already checked."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same weight in every epoch.

    >>> [Constant()(e, 4) for e in range(4)]
    [1.0, 1.0, 1.0, 1.0]
    """

    @override
    def factor(self, epoch: int, epochs: int) -> float:
        return 1.0


@dataclass(frozen=True)
class LinearRamp(Schedule):
    """e / E: from 0 in the first epoch to (E - 1) / E in the last; 0 if there is but one (arXiv 2206.08880).

    >>> [LinearRamp()(e, 4) for e in range(4)]
    [0.0, 0.25, 0.5, 0.75]
    """

    @override
    def factor(self, epoch: int, epochs: int) -> float:
        return epoch / epochs
