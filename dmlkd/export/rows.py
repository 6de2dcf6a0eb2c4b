"""What is to be embedded: images in order, each with an id, a path and, where there is one, a label."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dmlkd.data import ImageDataset, ImageTable
from dmlkd.data.folder import files_below, is_image
from dmlkd.data.places import check_paths
from dmlkd.data.table import numbered, strings
from dmlkd.data.tabular import label_column, read_columns, text_column
from dmlkd.errors import DataError


class Identities(NamedTuple):
    """Who some consecutive rows are.

    Attributes:
        ids: (n,) names, unique where the table's are.
        paths: (n,) where the images are.
        labels: (n,) class ids; None: there are none.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    labels: NDArray[np.int64] | None


class Rows(Protocol):
    """What can be embedded; of millions of rows too, so nothing is asked of all at once."""

    def __len__(self) -> int: ...

    def images(self, rows: Sequence[int]) -> Tensor:
        """Some images (B, C, H, W), prepared."""
        ...

    def identities(self, start: int, stop: int) -> Identities:
        """Who the rows from ``start`` to before ``stop`` are."""
        ...


class ImageRows:
    """The rows of an image data set.

    Args:
        dataset: prepared for testing.
        ids: (N,) names; None: the paths.
        labelled: whether its labels say anything.
    """

    def __init__(self, dataset: ImageDataset, *, ids: NDArray[np.str_] | None = None, labelled: bool = True) -> None:
        if ids is not None and len(ids) != len(dataset):
            raise DataError(f"{len(ids)} ids for {len(dataset)} images")
        self.dataset = dataset
        self.ids = dataset.paths if ids is None else ids
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.dataset)

    def images(self, rows: Sequence[int]) -> Tensor:
        """Some images (B, C, H, W), prepared."""
        return self.dataset.batch(rows).images

    def identities(self, start: int, stop: int) -> Identities:
        """Who the rows from ``start`` to before ``stop`` are."""
        labels = self.dataset.labels[start:stop] if self.labelled else None
        return Identities(self.ids[start:stop].tolist(), self.dataset.paths[start:stop].tolist(), labels)


class FoundTable(NamedTuple):
    """A table of images.

    Attributes:
        table: the images; all of the split "test".
        ids: (N,) names; None: the paths.
        labelled: whether the table's labels say anything.
    """

    table: ImageTable
    ids: NDArray[np.str_] | None
    labelled: bool


def read_table(source: Path, *, root: Path | None = None) -> FoundTable:
    """Read what to embed: all images below a folder, or the rows of a CSV or Parquet file, in order.

    A folder's images come in sorted order, labelled by the folder they are in unless one lies at the top. A file has
    a column ``path``, and may have ``label`` (whole numbers or names) and ``id``.

    Args:
        source: the folder or file.
        root: what the paths of a file start from; None: the file's folder.

    Raises:
        DataError: if it is not there, cannot be read or holds no images.
    """
    if source.is_dir():
        return _of_folder(source)
    columns = read_columns(source, text=("path", "id"), others=("label",), required=("path",))
    paths = text_column(columns["path"], source)
    try:
        check_paths(paths)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    labels, names = label_column(columns, source) if "label" in columns else _unlabelled(len(paths))
    ids = text_column(columns["id"], source) if "id" in columns else None
    table = ImageTable(paths, labels, strings(["test"] * len(paths)), names, root=root or source.parent)
    return FoundTable(table, ids, "label" in columns)


def _of_folder(folder: Path) -> FoundTable:
    found = sorted(file for file in files_below(folder) if is_image(file))
    if not found:
        raise DataError(f"{folder} holds no images")
    labelled = all("/" in path for path in found)
    labels, names = (
        numbered(strings(path.rpartition("/")[0] for path in found)) if labelled else _unlabelled(len(found))
    )
    table = ImageTable(strings(found), labels, strings(["test"] * len(found)), names, root=folder)
    return FoundTable(table, None, labelled)


def _unlabelled(count: int) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    return np.zeros(count, np.int64), strings([""])
