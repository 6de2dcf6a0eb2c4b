"""What is to be embedded: images in order, each with an id, a path and, where there is one, a label."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dmlkd.data import ImageDataset, ImageTable
from dmlkd.data.folder import files_below, is_image
from dmlkd.data.table import numbered, strings
from dmlkd.data.tabular import label_column, read_columns, table_of, text_column
from dmlkd.errors import DataError


class Identities(NamedTuple):
    """Who some consecutive rows are.

    Attributes:
        ids: (n,) names, unique where the table's are.
        paths: (n,) where the images are.
        labels: (n,) class ids; None: there are none.
        class_names: (n,) what the classes are called; None: nothing says so.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    labels: NDArray[np.int64] | None
    class_names: Sequence[str] | None = None


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
        class_names: (C,) aligned with ``np.unique(dataset.labels)``; None: nothing says what the classes are called.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        ids: NDArray[np.str_] | None = None,
        labelled: bool = True,
        class_names: NDArray[np.str_] | None = None,
    ) -> None:
        if ids is not None and len(ids) != len(dataset):
            raise DataError(f"{len(ids)} ids for {len(dataset)} images")
        classes = int(dataset.targets.max()) + 1
        if class_names is not None and len(class_names) != classes:
            raise DataError(f"{len(class_names)} class names for {classes} classes")
        self.dataset = dataset
        self.ids = dataset.paths if ids is None else ids
        self.labelled = labelled
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.dataset)

    def images(self, rows: Sequence[int]) -> Tensor:
        """Some images (B, C, H, W), prepared."""
        return self.dataset.batch(rows).images

    def identities(self, start: int, stop: int) -> Identities:
        """Who the rows from ``start`` to before ``stop`` are."""
        labels = self.dataset.labels[start:stop] if self.labelled else None
        names = None
        if self.labelled and self.class_names is not None:
            names = self.class_names[self.dataset.targets[start:stop]].tolist()
        return Identities(self.ids[start:stop].tolist(), self.dataset.paths[start:stop].tolist(), labels, names)


class FoundTable(NamedTuple):
    """A table of images.

    Attributes:
        table: the images; all of the split "test" where nothing says which they are of.
        ids: (N,) names; None: the paths.
        labelled: whether the table's labels say anything.
    """

    table: ImageTable
    ids: NDArray[np.str_] | None
    labelled: bool

    def rows(self, dataset: Callable[[ImageTable], ImageDataset]) -> ImageRows:
        """What is to be embedded.

        Args:
            dataset: prepares the table, such as :meth:`dmlkd.models.Preparation.dataset`.
        """
        return ImageRows(dataset(self.table), ids=self.ids, labelled=self.labelled, class_names=self.table.class_names)


def read_table(source: Path, *, root: Path | None = None, split: str = "all") -> FoundTable:
    """Read what to embed: all images below a folder, or the rows of a CSV or Parquet file, in order.

    A folder's images come in sorted order, labelled by the folder they are in unless one lies at the top. A file has
    a column ``path``, and may have ``label`` (whole numbers or names), ``id`` and the others that
    :func:`~dmlkd.data.table_file` reads.

    Args:
        source: the folder or file.
        root: what the paths of a file start from; None: the file's folder.
        split: "train", "val" or "test" of a file with a column ``split``, or "all".

    Raises:
        DataError: if it is not there, cannot be read or holds no images, or none of the split.
    """
    if source.is_dir():
        if split != "all":
            raise DataError(f"{source}: the images of a folder are of no split: give --data folder, or split all")
        return _of_folder(source)
    columns = read_columns(source, required=("path",))
    count = len(columns["path"])
    labels, names = label_column(columns, source) if "label" in columns else _unlabelled(count)
    table = table_of(columns, source, labels, names, root=root or source.parent, split=strings(["test"] * count))
    ids = text_column(columns["id"], source) if "id" in columns else None
    if split != "all":
        if "split" not in columns:
            raise DataError(f"{source}: has no column split, so none of its rows is known to be of {split!r}")
        chosen = table.split == split
        if not chosen.any():
            raise DataError(f"{source}: has no rows of the split {split!r}")
        table, ids = table.where(chosen), None if ids is None else ids[chosen]
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
