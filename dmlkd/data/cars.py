"""Cars196 (Stanford Cars), in the three layouts it is found in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlkd.data.counts import checked_counts
from dmlkd.data.lines import path_column
from dmlkd.data.places import SEPARATOR, members
from dmlkd.data.table import ImageTable, strings
from dmlkd.data.tabular import table_file
from dmlkd.errors import DataError

LAST_TRAINING_CLASS = 98
_LABELLED = "cars_test_annos_withlabels.mat"


def cars196(root: Path, *, archive: str | None = None, complete: bool = True) -> ImageTable:
    """Read Cars196: train on classes 1 to 98 (8,054 images), test on 99 to 196 (8,131 images).

    Read is the first of these that is there: ``cars_annos.mat`` with ``car_ims/``; the devkit's
    ``cars_train_annos.mat`` and ``cars_test_annos_withlabels.mat`` with ``cars_train/`` and ``cars_test/``;
    ``cars196.csv`` or ``cars196.parquet`` with the columns ``path`` and ``label``. The official train and test sets
    are a classification split and are not used. Boxes are turned from MATLAB's inclusive corners, counted from 1.
    Source: J. Krause et al. 2013, https://doi.org/10.1109/ICCVW.2013.77.

    Args:
        root: the folder with one of the three.
        archive: for the table: a zip below ``root`` that the paths are in; None: files, or the one zip that has them.
        complete: refuse other counts than the official ones.

    Raises:
        DataError: if none is there, it is malformed, or a count is not the official one.
    """
    devkit = next((f for f in (root / "devkit", root) if (f / "cars_train_annos.mat").is_file()), None)
    listed = next((f for f in (root / "cars196.csv", root / "cars196.parquet") if f.is_file()), None)
    if (root / "cars_annos.mat").is_file():
        source = root / "cars_annos.mat"
        found = _of_one_file(root, source)
    elif devkit is not None:
        source = devkit
        found = _of_devkit(root, devkit)
    elif listed is not None:
        source = listed
        found = _of_table(root, listed, archive)
    else:
        raise DataError(f"{root} holds neither cars_annos.mat, devkit/cars_train_annos.mat nor cars196.csv or .parquet")
    return checked_counts("cars196", found, source, complete=complete)


def _of_one_file(root: Path, source: Path) -> ImageTable:
    content = _mat(source)
    rows = _rows(content, source, ("relative_im_path", "class"))
    return _table(root, source, [str(path) for path in rows["relative_im_path"]], rows, content)


def _of_devkit(root: Path, devkit: Path) -> ImageTable:
    labelled = next((f for f in (devkit / _LABELLED, root / _LABELLED) if f.is_file()), None)
    if labelled is None:
        raise DataError(f"{devkit} has no {_LABELLED}: the test images have no labels without it")
    paths: list[str] = []
    parts = []
    for folder, file in (("cars_train", devkit / "cars_train_annos.mat"), ("cars_test", labelled)):
        rows = _rows(_mat(file), file, ("fname", "class"))
        nested = f"{folder}/{folder}" if (root / folder / folder).is_dir() else folder
        paths += [f"{nested}/{name}" for name in rows["fname"]]
        parts.append(rows)
    rows = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return _table(root, devkit, paths, rows, _mat(devkit / "cars_meta.mat"))


def _of_table(root: Path, listed: Path, archive: str | None) -> ImageTable:
    found = table_file(root, file=listed.name, train_fraction=0)
    if archive is None and not (root / str(found.paths[0])).is_file():
        archive = _archive(root, str(found.paths[0]))
    paths = found.paths if archive is None else np.strings.add(strings([archive + SEPARATOR]), found.paths)
    return replace(found, paths=path_column(paths.tolist(), listed), split=_split(found.labels))


def _archive(root: Path, path: str) -> str | None:
    """The one zip in the root that has this path."""
    holding = [zipped.name for zipped in sorted(root.glob("*.zip")) if path in set(members(zipped))]
    if len(holding) > 1:
        raise DataError(f"{root}: {path} is in {', '.join(holding)}; say which with data.archive")
    return holding[0] if holding else None


def _table(
    root: Path, source: Path, paths: list[str], rows: dict[str, NDArray[Any]], names: dict[str, Any]
) -> ImageTable:
    labels = rows["class"].astype(np.int64)
    if "class_names" not in names:
        raise DataError(f"{source}: there are no class_names")
    all_names = np.atleast_1d(names["class_names"]).tolist()
    classes = np.unique(labels).tolist()
    if classes[0] < 1 or classes[-1] > len(all_names):
        raise DataError(f"{source}: classes {classes[0]} to {classes[-1]}, but {len(all_names)} names")
    boxes = None
    if "bbox_x1" in rows:
        x1, y1, x2, y2 = (rows[f"bbox_{key}"].astype(np.float32) for key in ("x1", "y1", "x2", "y2"))
        boxes = np.stack([x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], axis=1)
    return ImageTable(
        path_column(paths, source),
        labels,
        _split(labels),
        strings(str(all_names[label - 1]) for label in classes),
        root,
        boxes=boxes,
    )


def _split(labels: NDArray[np.int64]) -> NDArray[np.str_]:
    return strings("train" if label <= LAST_TRAINING_CLASS else "test" for label in labels.tolist())


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(path, squeeze_me=True)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except Exception as error:  # SciPy's reader raises nearly anything on a damaged file
        raise DataError(f"{path}: cannot be read as a MATLAB file: {' '.join(str(error).split())}") from None
    return content


def _rows(content: dict[str, Any], source: Path, needed: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """The fields of ``annotations``, an array each."""
    rows = np.atleast_1d(content.get("annotations", np.empty(0)))
    there = rows.dtype.names or ()
    if missing := [name for name in needed if name not in there]:
        raise DataError(f"{source}: annotations have no {missing[0]}, found {', '.join(there) or 'none'}")
    corners = [f"bbox_{key}" for key in ("x1", "y1", "x2", "y2")]
    wanted = [*needed, *(corners if set(corners) <= set(there) else ())]
    return {name: np.array(rows[name].tolist()) for name in wanted}
