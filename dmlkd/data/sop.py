"""Stanford Online Products."""

from pathlib import Path

import numpy as np

from dmlkd.data.counts import checked_counts
from dmlkd.data.lines import check_header, fields, inside, path_column, whole
from dmlkd.data.table import ImageTable, strings

HEADER = "image_id class_id super_class_id path"


def sop(root: Path, *, complete: bool = True) -> ImageTable:
    """Read Stanford Online Products: ``Ebay_train.txt`` (59,551 images) and ``Ebay_test.txt`` (60,502 images).

    Source: H. O. Song et al. 2016, https://arxiv.org/abs/1511.06452.

    Args:
        root: the folder ``Stanford_Online_Products``, or the one it is in.
        complete: refuse other counts than the official ones.

    Raises:
        DataError: if a file is missing or malformed, or a count is not the official one.
    """
    folder = inside(root, "Stanford_Online_Products", "Ebay_train.txt")
    labels: list[int] = []
    paths: list[str] = []
    split: list[str] = []
    for part in ("train", "test"):
        file = folder / f"Ebay_{part}.txt"
        check_header(file, HEADER, line=1)
        for number, (_, label, _, path) in fields(file, 4, skip=1):
            labels.append(whole(label, file, number))
            paths.append(path)
            split.append(part)
    ids = np.array(labels, np.int64)
    first = np.unique(ids, return_index=True)[1].tolist()
    table = ImageTable(
        path_column(paths, folder),
        ids,
        strings(split),
        strings(f"{paths[row].partition('/')[0].removesuffix('_final')} {labels[row]}" for row in first),
        root=folder,
    )
    return checked_counts("sop", table, folder, complete=complete)
