"""Means over the images of an epoch, which a checkpoint in the middle of it can hold."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Means:
    """Weighted means of named values, summed where the values are: adding waits for no device.

    >>> means = Means()
    >>> means.add({"loss": torch.tensor(1.0), "weight": 5.0}, 3)
    >>> means.add({"loss": torch.tensor(5.0)}, 1)
    >>> means.values()
    {'loss': tensor(2.), 'weight': tensor(5.)}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float], count: int) -> None:
        """Add the means over so many images."""
        for name, value in values.items():
            term = torch.as_tensor(value, dtype=torch.float32).detach() * count
            self._sums[name] = self._sums[name] + term if name in self._sums else term
            self._counts[name] = self._counts.get(name, 0) + count

    def values(self) -> dict[str, Tensor]:
        """The means so far, of the names that were added."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def clear(self) -> None:
        """Start again."""
        self._sums.clear()
        self._counts.clear()

    def state_dict(self) -> dict[str, Any]:
        """The sums, on the CPU, and the counts."""
        return {"sums": {name: total.cpu() for name, total in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
