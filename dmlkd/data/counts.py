"""How many images and classes each data set has, and whether those read are as many."""

from pathlib import Path

import numpy as np

from dmlkd.data.table import ImageTable
from dmlkd.errors import DataError

Counts = dict[str, tuple[int, int]]
"""Images and classes by part: a split, or a role where a split has roles."""

DUE: dict[str, Counts] = {
    "cub200": {"train": (5864, 100), "test": (5924, 100)},
    "cars196": {"train": (8054, 98), "test": (8131, 98)},
    "sop": {"train": (59551, 11318), "test": (60502, 11316)},
    "inshop": {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)},
    "omniglot": {"train": (19280, 964), "test": (13180, 659)},
    "omniglot-small": {"train": (2720, 136), "test": (2120, 106)},
    "digits": {"train": (901, 5), "test": (896, 5)},
}
"""The official counts, by registered name. What is not listed may have any."""


def parts(table: ImageTable) -> dict[str, ImageTable]:
    """The rows of each split, and of each role instead where a split has roles."""
    found = {}
    for split in np.unique(table.split):
        rows = table.of_split(str(split))
        roles = [""] if rows.role is None else [str(role) for role in np.unique(rows.role)]
        for role in roles:
            found[role or str(split)] = rows.of_role(role) if role else rows
    order = ("train", "val", "test", "query", "gallery")
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def counts(table: ImageTable) -> Counts:
    """Images and classes of each part."""
    return {name: (len(rows), rows.classes) for name, rows in parts(table).items()}


def mismatches(name: str, table: ImageTable) -> list[str]:
    """What is not as :data:`DUE` says, a sentence a part.

    Args:
        name: of a registered data set.
        table: what was read.
    """
    found = counts(table)
    sentences = []
    for part, due in DUE.get(name, {}).items():
        images, classes = found.get(part, (0, 0))
        if (images, classes) != due:
            sentences.append(f"found {images} images of {classes} classes for {part}, {due[0]} of {due[1]} are due")
    return sentences


def checked_counts(name: str, table: ImageTable, source: Path, *, complete: bool) -> ImageTable:
    """The table as it is, if it has the official counts or need not.

    Args:
        name: of a registered data set.
        table: what was read.
        source: the file or folder that the rows are listed in, named in the error.
        complete: refuse other counts.

    Raises:
        DataError: naming file, counts found and counts due.
    """
    if complete and (wrong := mismatches(name, table)):
        raise DataError(f"{source}: {'; '.join(wrong)}")
    return table
