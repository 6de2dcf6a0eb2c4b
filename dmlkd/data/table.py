"""The one table type: which images there are, what they show, and which split they are in."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Columns of equal length, one row an image.

    Attributes:
        paths: (N,) where each image is, relative to ``root``; ``archive.zip::member`` for an image inside a zip.
        labels: (N,) int64 class ids.
        split: (N,) "train" or "test".
        class_names: (C,) names of the classes, aligned with ``np.unique(labels)``.
        root: the folder the paths start from; None if the images are in ``pixels``.
        pixels: (N, C, H, W) uint8, for images that are in memory; None if they are files.

    Raises:
        DataError: if the columns differ in length or a class has no name.
    """

    paths: NDArray[np.str_]
    labels: NDArray[np.int64]
    split: NDArray[np.str_]
    class_names: NDArray[np.str_]
    root: Path | None = None
    pixels: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        columns = {"labels": self.labels, "split": self.split, "pixels": self.pixels}
        for name, column in columns.items():
            if column is not None and len(column) != len(self.paths):
                raise DataError(f"column {name} has {len(column)} rows, paths has {len(self.paths)}")
        if len(self.class_names) != self.classes:
            raise DataError(f"{len(self.class_names)} class names for {self.classes} classes")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def classes(self) -> int:
        """How many classes have a row."""
        return len(np.unique(self.labels))

    def where(self, keep: NDArray[np.bool_]) -> "ImageTable":
        """The rows for which ``keep`` (N,) is true, in order."""
        labels = self.labels[keep]
        named = np.isin(np.unique(self.labels), labels)
        return replace(
            self,
            paths=self.paths[keep],
            labels=labels,
            split=self.split[keep],
            class_names=self.class_names[named],
            pixels=None if self.pixels is None else self.pixels[keep],
        )

    def relabelled(self, labels: NDArray[np.int64]) -> "ImageTable":
        """The same images with other labels (N,) of the same classes."""
        named = np.isin(np.unique(self.labels), labels)
        return replace(self, labels=labels, class_names=self.class_names[named])

    def of_split(self, name: str) -> "ImageTable":
        """The rows of one split."""
        return self.where(self.split == name)


def strings(values: list[str]) -> NDArray[np.str_]:
    """A column of strings, without a Python object a row."""
    return np.array(values, dtype=np.dtypes.StringDType())
