"""The one table type: which images there are, what they show, and which split they are in."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import DataError

SPLITS = ("train", "val", "test")
ROLES = ("", "query", "gallery")


class Pixels(Protocol):
    """Decoded images by row: an array (N, C, H, W) of uint8, or a store whose images differ in size."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any:
        """One image (C, H, W) for an integer; the rows chosen, for a mask or an array of integers."""
        ...


@runtime_checkable
class Stacking(Protocol):
    """Decoded images that can be had several at a time."""

    def stack(self, rows: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """Several images (B, C, H, W) at once; None if they differ in size."""
        ...


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Columns of equal length, one row an image.

    Attributes:
        paths: (N,) where each image is, relative to ``root``; ``archive.zip::member`` for an image inside a zip.
        labels: (N,) int64 class ids.
        split: (N,) "train", "val" or "test".
        class_names: (C,) names of the classes, aligned with ``np.unique(labels)``.
        root: the folder the paths start from; None if the images are in ``pixels``.
        pixels: (N, C, H, W) uint8, for images that are decoded already; None if they are files.
        role: (N,) "query", "gallery" or "" where the row has none; None: no row has one.
        domain: (N,) names such as "photo" and "sketch"; None: there is but one.
        boxes: (N, 4) float32 x, y, width, height in pixels of the upright image, from its top left; None: no boxes.

    Raises:
        DataError: if the columns differ in length or a class has no name.
    """

    paths: NDArray[np.str_]
    labels: NDArray[np.int64]
    split: NDArray[np.str_]
    class_names: NDArray[np.str_]
    root: Path | None = None
    pixels: Pixels | None = None
    role: NDArray[np.str_] | None = None
    domain: NDArray[np.str_] | None = None
    boxes: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "split", "pixels", "role", "domain", "boxes"):
            column = getattr(self, name)
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
            role=None if self.role is None else self.role[keep],
            domain=None if self.domain is None else self.domain[keep],
            boxes=None if self.boxes is None else self.boxes[keep],
        )

    def relabelled(self, labels: NDArray[np.int64]) -> "ImageTable":
        """The same images with other labels (N,) of the same classes."""
        named = np.isin(np.unique(self.labels), labels)
        return replace(self, labels=labels, class_names=self.class_names[named])

    def of_split(self, name: str) -> "ImageTable":
        """The rows of one split."""
        return self.where(self.split == name)

    def of_role(self, name: str) -> "ImageTable":
        """The rows of one role."""
        return self.where(np.zeros(len(self), np.bool_) if self.role is None else self.role == name)


def strings(values: Iterable[str]) -> NDArray[np.str_]:
    """A column of strings, without a Python object a row."""
    return np.array(list(values), dtype=np.dtypes.StringDType())


def numbered(names: NDArray[np.str_]) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Labels 0 to C - 1 for class names (N,) in sorted order, and the C names.

    >>> numbered(strings(["b", "a", "b"]))[0]
    array([1, 0, 1])
    """
    found, labels = np.unique(names, return_inverse=True)
    return labels.astype(np.int64), found
