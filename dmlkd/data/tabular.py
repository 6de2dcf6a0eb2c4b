"""Any table of images: CSV or Parquet."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from dmlkd.data.places import SEPARATOR, check_path, check_paths
from dmlkd.data.splits import split_by_class
from dmlkd.data.table import ROLES, SPLITS, ImageTable, strings
from dmlkd.errors import DataError

_TEXT = ("path", "id", "split", "role", "domain", "class_name")
_BOX = ("x", "y", "w", "h")
_KNOWN = (*_TEXT, "label", *_BOX)
_CHUNK = 65536


def table_file(
    root: Path,
    *,
    file: str,
    archive: str | None = None,
    train_classes: tuple[str | int, ...] = (),
    train_fraction: float = 0.5,
) -> ImageTable:
    """Read a CSV or Parquet file with the columns ``path`` and ``label`` and any of the others.

    ``label``: a whole number or a name. ``split``: train, val or test; without it whole classes are test classes.
    ``role``: query, gallery or empty. ``domain``: a name. ``class_name``. ``x, y, w, h``: a box, all four. Other
    columns are passed over.

    Args:
        root: the folder that the paths and ``file`` start from.
        file: the table, ``.csv`` or ``.parquet``.
        archive: a zip below ``root`` that the paths are in, read in place.
        train_classes: classes to train on, by name or number, the others are for testing; empty: ``train_fraction``
            decides. Neither with a column ``split``.
        train_fraction: share of the classes, in ascending order, to train on; 0: all are for testing.

    Raises:
        DataError: naming the file, and where possible the column, the row and the value that is wrong.
    """
    check_path(file)
    source = root / file
    columns = read_columns(source, required=("path", "label"))
    labels, names = label_column(columns, source)
    split = None
    if "split" in columns:
        if train_classes:
            raise DataError(f"{source}: it has a column split: train_classes does not go with it")
    else:
        try:
            split = split_by_class(labels, names, train_classes=train_classes, train_fraction=train_fraction)
        except DataError as error:
            raise DataError(f"{source}: {error}") from None
    return table_of(columns, source, labels, names, root=root, archive=archive, split=split)


def table_of(
    columns: dict[str, Any],
    source: Path,
    labels: NDArray[np.int64],
    names: NDArray[np.str_],
    *,
    root: Path,
    archive: str | None = None,
    split: NDArray[np.str_] | None = None,
) -> ImageTable:
    """The images that the rows of a file name.

    Args:
        columns: of :func:`read_columns`.
        source: the file, for errors.
        labels: (N,) class ids.
        names: (C,) names of the classes.
        root: the folder that the paths start from.
        archive: a zip below ``root`` that the paths are in.
        split: (N,) of each row, where there is no column ``split``.

    Raises:
        DataError: naming the file, the row and the value that is wrong.
    """
    paths = text_column(columns["path"], source)
    if archive is not None:
        check_path(archive)
        paths = np.strings.add(strings([archive + SEPARATOR]), paths)
    try:
        check_paths(paths)
        if "split" in columns:
            split = _of(text_column(columns["split"], source), SPLITS, "split")
        assert split is not None
        return ImageTable(
            paths,
            labels,
            split,
            names,
            root=root,
            role=_of(text_column(columns["role"], source, empty=True), ROLES, "role") if "role" in columns else None,
            domain=text_column(columns["domain"], source) if "domain" in columns else None,
            boxes=_boxes(columns),
        )
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def read_columns(source: Path, *, required: tuple[str, ...]) -> dict[str, Any]:
    """The known columns of a CSV or Parquet file, as Arrow columns; of a CSV file all but labels and boxes as text.

    Args:
        source: the file.
        required: those that must be there.

    Raises:
        DataError: if it cannot be read, has no rows, or lacks a column.
    """
    try:
        if source.suffix == ".csv":
            options = pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in _TEXT}, strings_can_be_null=False, null_values=[""]
            )
            read = pyarrow.csv.read_csv(source, convert_options=options)
        elif source.suffix == ".parquet":
            there = set(pyarrow.parquet.read_schema(source).names)
            read = pyarrow.parquet.read_table(source, columns=[name for name in _KNOWN if name in there])
        else:
            raise DataError(f"{source}: a table must be .csv or .parquet")
    except FileNotFoundError:
        raise DataError(f"{source} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{source}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    for name in required:
        if name not in read.column_names:
            raise DataError(f"{source}: column {name} is missing, found {', '.join(map(str, read.column_names))[:200]}")
    if not len(read):
        raise DataError(f"{source}: has no rows")
    return {name: read[name] for name in _KNOWN if name in read.column_names}


def label_column(columns: dict[str, Any], source: Path) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Class ids (N,) and names (C,): whole numbers stay as they are, names are numbered in sorted order.

    Args:
        columns: of :func:`read_columns`, with ``label`` and perhaps ``class_name``.
        source: for the error.

    Raises:
        DataError: for a label that is missing or neither a whole number nor a name.
    """
    label = columns["label"]
    if label.null_count:
        raise DataError(f"{source}: row {_first(label.is_null())}: label is missing")
    kind = label.type.value_type if pa.types.is_dictionary(label.type) else label.type
    if pa.types.is_integer(kind):
        labels = label.cast(pa.int64()).to_numpy()
        classes, first = np.unique(labels, return_index=True)
        if "class_name" in columns:
            return labels, text_column(columns["class_name"].take(pa.array(first)), source)
        return labels, strings(map(str, classes.tolist()))
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{source}: column label must hold whole numbers or names, it is of type {kind}")
    encoded = label.cast(kind).combine_chunks().dictionary_encode()
    given = strings(encoded.dictionary.to_pylist())
    order = np.argsort(given)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    return position[encoded.indices.to_numpy()], given[order]


def text_column(column: Any, source: Path, *, empty: bool = False) -> NDArray[np.str_]:
    """A column of strings (N,), a chunk at a time: never a Python object for every row at once.

    Args:
        column: of :func:`read_columns`.
        source: for the error.
        empty: whether a missing text is an empty one.

    Raises:
        DataError: for a missing text, unless it may be.
    """
    if column.null_count:
        if not empty:
            raise DataError(f"{source}: row {_first(column.is_null())}: a text is missing")
        column = pc.fill_null(column.cast(pa.string()), "")
    out: NDArray[np.str_] = np.empty(len(column), np.dtypes.StringDType())
    for start in range(0, len(column), _CHUNK):
        part = column.slice(start, _CHUNK)
        out[start : start + len(part)] = np.array(part.cast(pa.string()).to_pylist(), np.dtypes.StringDType())
    return out


def _of(column: NDArray[np.str_], valid: tuple[str, ...], name: str) -> NDArray[np.str_]:
    known = np.zeros(len(column), np.bool_)
    for value in valid:
        known |= column == value
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        shown = ", ".join(value or "empty" for value in valid)
        raise DataError(f"row {row}: {name} must be one of {shown}, found {str(column[row])!r}")
    return column


def _boxes(columns: dict[str, Any]) -> NDArray[np.float32] | None:
    given = [name for name in _BOX if name in columns]
    if not given:
        return None
    if len(given) < len(_BOX):
        raise DataError(f"a box needs the columns x, y, w and h, found only {', '.join(given)}")
    try:
        boxes = np.stack([columns[name].cast(pa.float32()).to_numpy() for name in _BOX], axis=1)
    except pa.ArrowException as error:
        raise DataError(f"columns x, y, w and h must be numbers: {error}") from None
    bad = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(f"row {row}: a box must have finite numbers and a width and height above 0, found {boxes[row]}")
    return np.ascontiguousarray(boxes)


def _first(mask: Any) -> int:
    return int(np.flatnonzero(mask.to_numpy())[0])
