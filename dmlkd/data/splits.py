"""Training, validation and test images of a run, the validation split taken from the training classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmlkd.data.dataset import ImageDataset
from dmlkd.data.table import ImageTable
from dmlkd.errors import DataError


@dataclass(frozen=True)
class DataSplits:
    """What a run trains on, chooses its epoch on (None: nothing) and is tested on.

    Attributes:
        train: the training images, their labels noisy where ``true_labels`` says otherwise.
        val: the validation images; None: no validation split.
        test: the test images.
        true_labels: (N,) labels of the training images before noise; None: there is no noise.
    """

    train: ImageDataset
    val: ImageDataset | None
    test: ImageDataset
    true_labels: NDArray[np.int64] | None = None

    def counts(self) -> dict[str, dict[str, int]]:
        """Images and classes of each split."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        counts = {
            name: {"images": len(part), "classes": len(np.unique(part.labels))}
            for name, part in parts.items()
            if part is not None
        }
        if self.true_labels is not None:
            counts["train"]["wrong_labels"] = int((self.train.labels != self.true_labels).sum())
        return counts


def split_classes(table: ImageTable, fraction: float, *, seed: int) -> tuple[ImageTable, ImageTable | None]:
    """Hold out whole classes for validation.

    Args:
        table: the training rows.
        fraction: of the classes, 0 <= fraction < 1, rounded to the nearest number of classes; 0 holds out none.
        seed: for the choice.

    Returns:
        What is left for training, and what is held out (None if nothing is).

    Raises:
        DataError: if fewer than 2 classes would be held out or left: retrieval among one class is always right.
    """
    if fraction == 0:
        return table, None
    classes = np.unique(table.labels)
    held = round(fraction * len(classes))
    if held < 2 or len(classes) - held < 2:
        raise DataError(
            f"data.validation = {fraction} holds out {held} of {len(classes)} training classes; "
            "at least 2 must be held out and 2 left, or set data.validation to 0"
        )
    chosen = np.random.default_rng([seed, len(classes)]).permutation(classes)[:held]
    inside = np.isin(table.labels, chosen)
    return table.where(~inside), table.where(inside)
