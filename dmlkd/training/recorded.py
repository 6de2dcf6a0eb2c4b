"""Rows of the training images that a run folder keeps a list of."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmlkd.data import ImageDataset
from dmlkd.errors import UserError
from dmlkd.files import write_csv

LEFT_OUT = "left_out.csv"
"""File of a run folder: the rows of the training images that the run did not train on."""

REPLAYED = "replay.csv"
"""File of a run folder: the rows that it trained on again, of classes of an earlier fit, best first in each class."""


def record_rows(path: Path, train: ImageDataset, rows: NDArray[np.int64]) -> None:
    """Write rows with their paths and labels.

    Args:
        path: of the CSV file.
        train: the training images.
        rows: (M,) of them, in the order they are kept in.
    """
    write_csv(path, [{"row": int(r), "path": str(train.paths[r]), "label": int(train.labels[r])} for r in rows])


def recorded_rows(path: Path, paths: NDArray[np.str_]) -> NDArray[np.int64]:
    """Read what :func:`record_rows` wrote: (M,) rows, in their order.

    Args:
        path: of the CSV file.
        paths: (N,) of the training images.

    Raises:
        UserError: if it cannot be read, or is of other images.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            recorded = [(int(row["row"]), row["path"]) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    for row, name in recorded:
        if not 0 <= row < len(paths) or paths[row] != name:
            raise UserError(f"{path} is of other training images: row {row} is {name} there")
    return np.array([row for row, _ in recorded], np.int64)


def trained_rows(folder: Path, paths: NDArray[np.str_]) -> NDArray[np.int64]:
    """The rows (M,) that a run trained on, ascending: all but those that it recorded as left out.

    Args:
        folder: of the run.
        paths: (N,) of the training images.

    Raises:
        UserError: as of :func:`recorded_rows`.
    """
    rows = np.arange(len(paths))
    left_out = folder / LEFT_OUT
    return np.setdiff1d(rows, recorded_rows(left_out, paths)) if left_out.is_file() else rows
