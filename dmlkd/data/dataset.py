"""The one dataset class: rows of an image table, decoded and transformed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dmlkd.data.images import Preparation, prepared, read_image
from dmlkd.data.table import ImageTable, Pixels, Stacking
from dmlkd.data.transforms import Transform
from dmlkd.errors import DataError
from dmlkd.signals import Batch


class ImageDataset(Dataset[Batch]):
    """Images with their class and row, as :class:`~dmlkd.signals.Batch` of one; the default collate stacks them.

    Args:
        table: the images.
        transform: applied to each (C, H, W) uint8 tensor.
        channels: 1 (grey) or 3 (RGB); images in memory must have that many already.
        in_memory: decode every image once, now, and keep it as uint8.
        image_size: resize to so many pixels square before the transform; 0: not so.
        shorter: resize in proportion, the shorter side to so many pixels, before the transform; 0: not so.
        crop: cut out the image's box first.
        classes: (C,) the class ids that targets count, in ascending order; None: those of the table.

    Attributes:
        paths: (N,) the table's paths.
        labels: (N,) the table's class ids.
        targets: (N,) the same classes as 0 to C - 1, what a batch holds as labels.
        role: (N,) the table's roles, or None.

    Raises:
        DataError: if the table has no rows, other classes or no boxes to crop to, or an image cannot be read.
    """

    def __init__(
        self,
        table: ImageTable,
        transform: Transform,
        *,
        channels: int,
        in_memory: bool = False,
        image_size: int = 0,
        shorter: int = 0,
        crop: bool = False,
        classes: NDArray[np.int64] | None = None,
    ) -> None:
        if not len(table):
            raise DataError("the table has no rows")
        if crop and table.boxes is None:
            raise DataError("the images have no boxes to crop to")
        self.paths = table.paths
        self.labels = table.labels
        self.role = table.role
        known = np.unique(table.labels) if classes is None else classes
        if not np.isin(table.labels, known).all():
            raise DataError("the table has a class that is none of those asked for")
        self.targets = np.searchsorted(known, table.labels).astype(np.int64)
        self.transform = transform
        self.channels = channels
        self.preparation = Preparation(channels, crop=crop, square=image_size or None, shorter=shorter or None)
        self._root = table.root
        self._boxes = table.boxes
        self._pixels: Pixels | None = table.pixels
        if in_memory and table.pixels is None:
            self._pixels = _stacked([self.decoded(row) for row in range(len(self))])
        if self._pixels is not None and self._pixels[0].shape[0] != channels:
            raise DataError(f"the images have {self._pixels[0].shape[0]} channels, asked for {channels}")

    def __len__(self) -> int:
        return len(self.labels)

    def decoded(self, row: int) -> NDArray[np.uint8]:
        """Read a row's file: the (C, H, W) image, cropped and resized.

        Raises:
            DataError: if it cannot be read, naming file and row.
        """
        if self._root is None:
            raise DataError("the table has neither a root for its paths nor pixels")
        try:
            return read_prepared(
                self._root, self.paths[row], self.preparation, None if self._boxes is None else self._boxes[row]
            )
        except DataError as error:
            raise DataError(f"row {row}: {error}") from None

    def image(self, row: int) -> Tensor:
        """The (C, H, W) uint8 image of a row, before the transform."""
        return torch.from_numpy(self.decoded(row) if self._pixels is None else np.array(self._pixels[row]))

    def __getitem__(self, row: int) -> Batch:
        return Batch(self.transform(self.image(row)), torch.tensor(self.targets[row]), torch.tensor(row))

    def batch(self, rows: Sequence[int]) -> Batch:
        """Several rows stacked: equal to collating them one by one, faster where they can be transformed together.

        Args:
            rows: which, in the order wanted.
        """
        chosen = np.asarray(rows)
        together = None if getattr(self.transform, "varies", True) else self._together(chosen)
        if together is not None:
            images = self.transform(torch.from_numpy(together))
        else:
            transformed = [self.transform(self.image(row)) for row in rows]
            if len({image.shape for image in transformed}) > 1:
                raise DataError("the images of a batch differ in size: the transform must give all of them the same")
            images = torch.stack(transformed)
        return Batch(images, torch.from_numpy(self.targets[chosen]), torch.from_numpy(chosen))

    def _together(self, rows: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """Decoded images of one size as one array; None where there is no such thing."""
        pixels = self._pixels
        if isinstance(pixels, np.ndarray) and pixels.ndim == 4:
            return pixels[rows]
        return pixels.stack(rows) if isinstance(pixels, Stacking) else None


def read_prepared(
    root: Path, path: str, preparation: Preparation, box: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Decode an image and prepare it.

    Args:
        root: the folder the path starts from.
        path: a file below it, or ``archive.zip::member``.
        preparation: channels, crop and size.
        box: (4,) of the image, where there are boxes.

    Returns:
        (C, H, W).

    Raises:
        DataError: if it cannot be read, naming it.
    """
    image = read_image(root, path, channels=preparation.channels)
    try:
        return prepared(image, preparation, box)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _stacked(images: list[NDArray[np.uint8]]) -> Pixels:
    """One array if all are of one size, else a column of arrays."""
    if len({image.shape for image in images}) == 1:
        return np.stack(images)
    column = np.empty(len(images), object)
    column[:] = images
    return column
