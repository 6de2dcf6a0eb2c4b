"""The one dataset class: rows of an image table, decoded and transformed."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as v2f

from dmlkd.data.images import read_image, resized
from dmlkd.data.table import ImageTable
from dmlkd.data.transforms import Transform
from dmlkd.errors import DataError
from dmlkd.signals import Batch


class ImageDataset(Dataset[Batch]):
    """Images with their class and row, as :class:`~dmlkd.signals.Batch` of one; the default collate stacks them.

    Args:
        table: the images.
        transform: applied to each (C, H, W) uint8 tensor.
        channels: 1 (grey) or 3 (RGB); images in memory must have that many already.
        in_memory: decode every image once, now, at ``image_size`` pixels square, and keep it as uint8.
        image_size: needed for ``in_memory``.

    Attributes:
        labels: (N,) the table's class ids.
        targets: (N,) the same classes as 0 to C - 1, what a batch holds as labels.

    Raises:
        DataError: if the table has no rows, or an image cannot be read.
    """

    def __init__(
        self, table: ImageTable, transform: Transform, *, channels: int, in_memory: bool = False, image_size: int = 0
    ) -> None:
        if not len(table):
            raise DataError("the table has no rows")
        self.paths = table.paths
        self.labels = table.labels
        self.targets = np.unique(table.labels, return_inverse=True)[1].astype(np.int64)
        self.transform = transform
        self.channels = channels
        self._root = table.root
        self._pixels = self._decode(table, image_size) if in_memory and table.pixels is None else table.pixels
        if self._pixels is not None and self._pixels.shape[1] != channels:
            raise DataError(f"the images have {self._pixels.shape[1]} channels, asked for {channels}")

    def _decode(self, table: ImageTable, size: int) -> NDArray[np.uint8]:
        root = self._files()
        decoded = np.empty((len(table), self.channels, size, size), np.uint8)
        for row, path in enumerate(table.paths):
            decoded[row] = resized(read_image(root, path, channels=self.channels), size)
        return decoded

    def _files(self) -> Path:
        if self._root is None:
            raise DataError("the table has neither a root for its paths nor pixels")
        return self._root

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> Tensor:
        """The (C, H, W) uint8 image of a row, before the transform."""
        if self._pixels is not None:
            return torch.from_numpy(self._pixels[row])
        image: Tensor = v2f.pil_to_tensor(read_image(self._files(), self.paths[row], channels=self.channels))
        return image

    def __getitem__(self, row: int) -> Batch:
        return Batch(self.transform(self.image(row)), torch.tensor(self.targets[row]), torch.tensor(row))
