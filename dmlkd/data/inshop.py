"""In-Shop Clothes Retrieval of DeepFashion."""

from pathlib import Path

import numpy as np

from dmlkd.data.counts import checked_counts
from dmlkd.data.lines import check_header, fields, path_column, text_lines, whole
from dmlkd.data.table import ImageTable, strings
from dmlkd.errors import DataError

HEADER = "image_name item_id evaluation_status"
_LIST = "list_eval_partition.txt"
_PARTITIONS = {"train": ("train", ""), "query": ("test", "query"), "gallery": ("test", "gallery")}


def inshop(root: Path, *, complete: bool = True) -> ImageTable:
    """Read In-Shop: 25,882 images to train on; 14,218 queries are looked for in a gallery of 12,612.

    A class is an item, the number after ``id_``. Source: Z. Liu et al. 2016,
    https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html.

    Args:
        root: the folder with ``Eval/list_eval_partition.txt`` and with ``img/``, ``Img/img/``, or ``img.zip`` beside or
            in ``Img/``, which is read in place.
        complete: refuse other counts than the official ones.

    Raises:
        DataError: if the list is missing or malformed, its first line states another number of rows than follow, or a
            count is not the official one.
    """
    file = next((place for place in (root / "Eval" / _LIST, root / _LIST) if place.is_file()), None)
    if file is None:
        raise DataError(f"{root} holds neither Eval/{_LIST} nor {_LIST}")
    check_header(file, HEADER, line=2)
    stated = whole(text_lines(file)[0].strip(), file, 1)
    labels: list[int] = []
    paths: list[str] = []
    partition: list[str] = []
    for number, (path, item, status) in fields(file, 3, skip=2):
        if not item.startswith("id_"):
            raise DataError(f"{file}:{number}: an item id such as id_00000002 is due, found {item!r}")
        if status not in _PARTITIONS:
            raise DataError(f"{file}:{number}: train, query or gallery is due, found {status!r}")
        labels.append(whole(item.removeprefix("id_"), file, number))
        paths.append(path)
        partition.append(status)
    if complete and stated != len(paths):
        raise DataError(f"{file}:1: states {stated} images, {len(paths)} rows follow")
    ids = np.array(labels, np.int64)
    prefix = _prefix(root)
    table = ImageTable(
        path_column([prefix + path for path in paths], file),
        ids,
        strings(_PARTITIONS[status][0] for status in partition),
        strings(f"id_{item:08d}" for item in np.unique(ids).tolist()),
        root=root,
        role=strings(_PARTITIONS[status][1] for status in partition),
    )
    return checked_counts("inshop", table, file, complete=complete)


def _prefix(root: Path) -> str:
    """What stands before ``img/...`` where the images are."""
    for folder in ("", "Img/"):
        if (root / folder / "img").is_dir():
            return folder
        if (root / folder / "img.zip").is_file():
            return f"{folder}img.zip::"
    return ""
