"""How the weight of a term moves over the epochs: a factor for each epoch, multiplied by the term's weight."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from typing_extensions import override

from dmlkd.distill.checks import not_negative, whole


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

    Args:
        ends_full: (e + 1) / E instead: from 1 / E to 1, and 1 if there is but one epoch (arXiv 2006.12000).

    >>> [LinearRamp()(e, 4) for e in range(4)]
    [0.0, 0.25, 0.5, 0.75]
    >>> [LinearRamp(ends_full=True)(e, 4) for e in range(4)]
    [0.25, 0.5, 0.75, 1.0]
    """

    ends_full: bool = False

    @override
    def factor(self, epoch: int, epochs: int) -> float:
        return (epoch + self.ends_full) / epochs


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Linear from 0 in the first epoch to 1 in epoch ``epochs``, then 1.

    Args:
        epochs: how many epochs the weight takes to rise, at least 1.

    Raises:
        ValueError: unless ``epochs`` is a whole number of at least 1.

    >>> [WarmUp(epochs=2)(e, 4) for e in range(4)]
    [0.0, 0.5, 1.0, 1.0]
    """

    epochs: int

    def __post_init__(self) -> None:
        whole("epochs", self.epochs)

    @override
    def factor(self, epoch: int, epochs: int) -> float:
        return min(1.0, epoch / self.epochs)


@dataclass(frozen=True)
class After(Schedule):
    """0 in the first ``epochs`` epochs, then 1: a second phase.

    Args:
        epochs: how many epochs the first phase takes, at least 1.

    Raises:
        ValueError: unless ``epochs`` is a whole number of at least 1.

    >>> [After(epochs=3)(e, 4) for e in range(4)]
    [0.0, 0.0, 0.0, 1.0]
    """

    epochs: int = 1

    def __post_init__(self) -> None:
        whole("epochs", self.epochs)

    @override
    def factor(self, epoch: int, epochs: int) -> float:
        return float(epoch >= self.epochs)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from ``start`` in the first epoch to ``end`` in the last; ``start`` if there is but one.

    Args:
        start: factor of the first epoch, >= 0.
        end: factor of the last epoch, >= 0.

    Raises:
        ValueError: for a bad number, naming it.

    >>> [round(Cosine()(e, 5), 3) for e in range(5)]
    [0.0, 0.146, 0.5, 0.854, 1.0]
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        not_negative("start", self.start)
        not_negative("end", self.end)

    @override
    def factor(self, epoch: int, epochs: int) -> float:
        done = epoch / (epochs - 1) if epochs > 1 else 0.0
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * done)) / 2
