"""What is to be embedded: images in order, each with an id, a path and, where there is one, a label."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from torch import Tensor

from dmlkd.data import ImageDataset, ImageTable
from dmlkd.data.table import strings
from dmlkd.errors import DataError

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"})


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
    # The one place that reads layouts for this room.
    if source.is_dir():
        return _of_folder(source)
    columns = _columns(source)
    if "path" not in columns:
        raise DataError(f"{source}: column path is missing, found {', '.join(columns)[:200]}")
    paths = strings(columns["path"].cast(pa.string()).to_pylist())
    labels, names = _labels(columns["label"], source) if "label" in columns else _unlabelled(len(paths))
    ids = strings(columns["id"].cast(pa.string()).to_pylist()) if "id" in columns else None
    table = ImageTable(paths, labels, strings(["test"] * len(paths)), names, root=root or source.parent)
    return FoundTable(table, ids, "label" in columns)


def _of_folder(folder: Path) -> FoundTable:
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in _IMAGES)
    found = [path for path in found if not any(part.startswith((".", "__MACOSX")) for part in path.split("/"))]
    if not found:
        raise DataError(f"{folder} holds no images")
    labelled = all("/" in path for path in found)
    if labelled:
        names, labels = np.unique(strings([path.rpartition("/")[0] for path in found]), return_inverse=True)
    else:
        labels, names = _unlabelled(len(found))
    table = ImageTable(strings(found), labels.astype(np.int64), strings(["test"] * len(found)), names, root=folder)
    return FoundTable(table, None, labelled)


def _columns(source: Path) -> dict[str, pa.ChunkedArray]:
    known = ("path", "label", "id")
    try:
        if source.suffix == ".csv":
            text = pyarrow.csv.ConvertOptions(column_types={"path": pa.string(), "id": pa.string()})
            read = pyarrow.csv.read_csv(source, convert_options=text)
        elif source.suffix == ".parquet":
            there = pyarrow.parquet.read_schema(source).names
            read = pyarrow.parquet.read_table(source, columns=[name for name in known if name in there])
        else:
            raise DataError(f"{source} is neither a folder nor a table (.csv or .parquet)")
    except FileNotFoundError:
        raise DataError(f"{source} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{source}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not len(read):
        raise DataError(f"{source}: has no rows")
    for name in known:
        if name in read.column_names and read[name].null_count:
            raise DataError(f"{source}: column {name} has rows without a value")
    return {name: read[name] for name in read.column_names}


def _labels(column: pa.ChunkedArray, source: Path) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    if pa.types.is_integer(column.type):
        labels = column.cast(pa.int64()).to_numpy()
        return labels, strings([str(label) for label in np.unique(labels)])
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{source}: column label must hold whole numbers or names, it is of type {column.type}")
    names, positions = np.unique(strings(column.to_pylist()), return_inverse=True)
    return positions.astype(np.int64), names


def _unlabelled(count: int) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    return np.zeros(count, np.int64), strings([""])
