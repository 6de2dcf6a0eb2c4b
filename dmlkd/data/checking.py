"""Reading every image once: which cannot be read, and what each file holds."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dmlkd.data.images import Preparation, decode, prepared
from dmlkd.data.loading import in_order
from dmlkd.data.places import read_bytes
from dmlkd.data.splits import Unreadable
from dmlkd.data.table import ImageTable
from dmlkd.errors import DataError


class Reading(NamedTuple):
    """What reading one image gave.

    Attributes:
        row: of the table.
        digest: of the file's content, 16 bytes; None: there is none.
        pixels: (C, H, W), prepared; None: it could not be decoded, or was only looked at.
        size: width and height, prepared.
        reason: why it could not be read; empty if it could.
    """

    row: int
    digest: bytes | None
    pixels: NDArray[np.uint8] | None
    size: tuple[int, int] = (0, 0)
    reason: str = ""


class Readings(Dataset[Reading]):
    """Every row of a table, read and prepared; what goes wrong is said in the reading, not raised.

    Args:
        table: images in files.
        preparation: what is done to each.
        start: the first row.
        keep: give the pixels too, not only whether there are any.
    """

    def __init__(self, table: ImageTable, preparation: Preparation, *, start: int = 0, keep: bool = True) -> None:
        if table.root is None:
            raise DataError("the table has no files")
        self._root: Path = table.root
        self._paths = table.paths
        self._boxes = table.boxes
        self._preparation = preparation
        self._start = start
        self._keep = keep

    def __len__(self) -> int:
        return len(self._paths) - self._start

    def __getitem__(self, item: int) -> Reading:
        row = item + self._start
        digest = None
        try:
            content = read_bytes(self._root, str(self._paths[row]))
            digest = hashlib.blake2b(content, digest_size=16).digest()
            image = decode(content, channels=self._preparation.channels)
            pixels = prepared(image, self._preparation, None if self._boxes is None else self._boxes[row])
        except DataError as error:
            return Reading(row, digest, None, reason=str(error))
        return Reading(row, digest, pixels if self._keep else None, (pixels.shape[2], pixels.shape[1]))


def unreadable(table: ImageTable, readings: Sequence[Reading]) -> tuple[Unreadable, ...]:
    """Those that could not be read.

    Args:
        table: that they are of.
        readings: of any of its rows.
    """
    return tuple(
        Unreadable(reading.row, str(table.paths[reading.row]), str(table.split[reading.row]), reading.reason)
        for reading in readings
        if reading.reason
    )


def find_unreadable(table: ImageTable, preparation: Preparation, *, workers: int = 0) -> tuple[Unreadable, ...]:
    """Decode every image once, and say which cannot be.

    Args:
        table: images in files, or already decoded (of which none is unreadable).
        preparation: what is done to each.
        workers: processes; 0: this one.
    """
    if table.pixels is not None:
        return ()
    return unreadable(table, list(in_order(Readings(table, preparation, keep=False), workers=workers)))


def without(table: ImageTable, left_out: Sequence[Unreadable]) -> ImageTable:
    """The table without some rows."""
    keep = np.ones(len(table), np.bool_)
    keep[[bad.row for bad in left_out]] = False
    return table.where(keep) if left_out else table
