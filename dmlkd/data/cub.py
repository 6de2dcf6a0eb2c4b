"""CUB-200-2011: birds."""

from pathlib import Path

import numpy as np

from dmlkd.data.counts import checked_counts
from dmlkd.data.lines import fields, inside, path_column, whole
from dmlkd.data.table import ImageTable, strings
from dmlkd.errors import DataError

LAST_TRAINING_CLASS = 100


def cub200(root: Path, *, complete: bool = True) -> ImageTable:
    """Read CUB-200-2011: train on classes 1 to 100 (5,864 images), test on 101 to 200 (5,924 images).

    Rows are joined by image id. ``train_test_split.txt`` is a classification split and is not read.
    Source: C. Wah et al. 2011, https://www.vision.caltech.edu/datasets/cub_200_2011/.

    Args:
        root: the folder ``CUB_200_2011``, or the one it is in.
        complete: refuse other counts than the official ones.

    Raises:
        DataError: if a file or row is missing or malformed, or a count is not the official one.
    """
    folder = inside(root, "CUB_200_2011", "images.txt")
    listed = folder / "images.txt"
    paths = _by_id(listed, 2)
    classes = _by_id(folder / "image_class_labels.txt", 2)
    boxes = _by_id(folder / "bounding_boxes.txt", 5)
    for file, rows in (("image_class_labels.txt", classes), ("bounding_boxes.txt", boxes)):
        if missing := [key for key in paths if key not in rows]:
            raise DataError(
                f"{folder / file}: no row for image {missing[0]} of images.txt ({len(missing)} are missing)"
            )
        if extra := [key for key in rows if key not in paths]:
            raise DataError(f"{listed}: no row for image {extra[0]} of {file} ({len(extra)} are missing)")
    names = {key: value[0] for key, value in _by_id(folder / "classes.txt", 2).items()}
    labels = np.array([whole(classes[key][0], folder / "image_class_labels.txt", key) for key in paths], np.int64)
    if unnamed := sorted(set(labels.tolist()) - names.keys()):
        raise DataError(f"{folder / 'classes.txt'}: no row for class {unnamed[0]} ({len(unnamed)} are missing)")
    table = ImageTable(
        path_column([f"images/{path}" for (path,) in paths.values()], listed),
        labels,
        strings("train" if label <= LAST_TRAINING_CLASS else "test" for label in labels),
        strings(names[label] for label in np.unique(labels).tolist()),
        root=folder,
        boxes=_boxes(folder / "bounding_boxes.txt", [boxes[key] for key in paths]),
    )
    return checked_counts("cub200", table, listed, complete=complete)


def _by_id(path: Path, width: int) -> dict[int, list[str]]:
    rows: dict[int, list[str]] = {}
    for number, (key, *rest) in fields(path, width):
        identity = whole(key, path, number)
        if identity in rows:
            raise DataError(f"{path}:{number}: id {identity} is given twice")
        rows[identity] = rest
    return rows


def _boxes(path: Path, rows: list[list[str]]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    try:
        return np.array(rows, np.float32).reshape(-1, 4)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
