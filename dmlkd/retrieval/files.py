"""Embedding files and folders read, and values per query written and read back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError, suggestion
from dmlkd.files import check_folder, replacing, sha256_of
from dmlkd.retrieval.scores import Scores

_EMBEDDINGS = ("embeddings", "embedding")
_LABELS = ("labels", "label")
_IDS = ("ids", "id")
_MANIFEST = "_manifest.json"
_SUFFIXES = (".safetensors", ".parquet", ".npz", ".npy")


class EmbeddingFile(NamedTuple):
    """What an embedding file holds.

    Attributes:
        embeddings: (N, D).
        labels: (N,) class ids, if it has them.
        ids: (N,) identities, if it has them.
        model: the fingerprint of the network they are of, if a manifest says so.
    """

    embeddings: NDArray[Any]
    labels: NDArray[Any] | None
    ids: NDArray[Any] | None
    model: str | None = None


def read_embeddings(path: Path) -> EmbeddingFile:
    """Read embeddings, and labels and identities where the file has them; nothing in it is executed.

    Safetensors and npz hold arrays named ``embeddings``, ``labels``, ``ids``; Parquet a list column ``embedding`` and
    columns ``label``, ``id``; npy the embeddings alone. ``scale`` multiplies each row. What a file cannot hold may
    stand in FILE.rows.parquet beside it. A folder that ``dmlkd embed`` wrote is read whole.

    Args:
        path: ending in .safetensors, .parquet, .npz or .npy, or a folder with a manifest.

    Raises:
        UserError: if it is not there, of another kind, damaged, or has no embeddings.
    """
    if not path.is_dir():
        return _read_file(path)._replace(model=_manifest(path.with_name(f"{path.name}.manifest.json")).get("model"))
    parts = list(read_shards(path))
    columns = [
        None if any(column is None for column in same) else np.concatenate(same)
        for same in zip(*((part.embeddings, part.labels, part.ids) for part in parts), strict=True)
    ]
    assert columns[0] is not None
    return EmbeddingFile(columns[0], columns[1], columns[2], parts[0].model)


def read_shards(path: Path) -> Iterator[EmbeddingFile]:
    """Read a folder of embeddings a shard at a time, or a file at once.

    Args:
        path: as of :func:`read_embeddings`.

    Raises:
        UserError: as :func:`read_embeddings`; also for a shard whose checksum is not that of the manifest.
    """
    if not path.is_dir():
        yield read_embeddings(path)
        return
    if not (path / _MANIFEST).is_file():
        raise UserError(f"{path} holds no finished embeddings: it has no {_MANIFEST}")
    manifest = _manifest(path / _MANIFEST)
    try:
        shards = [{str(name): str(known["sha256"]) for name, known in s["files"].items()} for s in manifest["shards"]]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path / _MANIFEST} is not the manifest of embeddings") from None
    for files in shards:
        for name, sha256 in files.items():
            if Path(name).name != name:
                raise UserError(f"{path / _MANIFEST} names a file outside its folder: {name}")
            if not (path / name).is_file() or sha256_of(path / name) != sha256:
                raise UserError(f"{path / name} is missing or not what its manifest says; run dmlkd embed again")
        yield _read_file(path / next(iter(files)))._replace(model=manifest.get("model"))


def _manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return dict(found)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def _read_file(path: Path) -> EmbeddingFile:
    columns = _columns(path)
    found = [_first(columns, names) for names in (_EMBEDDINGS, _LABELS, _IDS)]
    if found[0] is None:
        raise UserError(f"{path} has no 'embeddings'; it has {', '.join(sorted(columns)) or 'nothing'}")
    if "scale" in columns:
        found[0] = found[0] * columns["scale"][:, None]
    return EmbeddingFile(found[0], found[1], found[2])


def read_labels(path: Path) -> NDArray[Any]:
    """Read class ids from an npy file, or from what else :func:`read_embeddings` reads.

    Raises:
        UserError: if it is not there, of another kind, damaged, or has no labels.
    """
    columns = _columns(path)
    labels = columns["embeddings"] if path.suffix == ".npy" else _first(columns, _LABELS)
    if labels is None:
        raise UserError(f"{path} has no 'labels'; it has {', '.join(sorted(columns)) or 'nothing'}")
    return labels


def check_per_query(path: Path) -> None:
    """Refuse a name that :func:`write_per_query` could not write to.

    Raises:
        UserError: unless it ends in .parquet, in a folder that is there.
    """
    if path.suffix != ".parquet":
        raise UserError(f"values per query are written as Parquet: {path} must end in .parquet")
    check_folder(path)


def write_per_query(path: Path, scores: Scores) -> None:
    """Write each query's row, class and values as a Parquet file, whole or not at all.

    Args:
        path: ending in .parquet.
        scores: with values per query.

    Raises:
        UserError: if the name ends otherwise, or there are no values.
    """
    check_per_query(path)
    if not scores.per_query:
        raise UserError("there are no values per query to write: none of the metrics is a mean over queries")
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"row": np.arange(len(next(iter(scores.per_query.values()))))}
    if scores.classes is not None:
        columns["label"] = scores.classes
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns | scores.per_query), temporary)


def read_per_query(path: Path) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """Read what :func:`write_per_query` wrote.

    Returns:
        The values of each metric, and the class ids.

    Raises:
        UserError: if the file is not there, damaged, or without classes.
    """
    columns = _columns(path)
    if "label" not in columns or "row" not in columns:
        raise UserError(f"{path} does not hold values per query with their classes: it has {', '.join(columns)}")
    classes = columns["label"].astype(np.int64)
    return {n: v.astype(np.float64) for n, v in columns.items() if n not in ("row", "label")}, classes


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    if path.suffix not in _SUFFIXES:
        raise UserError(f"{path} is no embedding file: its name must end in one of {', '.join(_SUFFIXES)}")
    if not path.is_file():
        near = suggestion(path.name, [p.name for p in path.parent.glob("*")]) if path.parent.is_dir() else ""
        raise UserError(f"{path} does not exist{near if near.startswith('; did') else ''}")
    beside = path.with_name(f"{path.name}.rows.parquet")
    try:
        return _read(path) | (_read(beside) if path.suffix in (".npy", ".safetensors") and beside.is_file() else {})
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def _read(path: Path) -> dict[str, NDArray[Any]]:
    if path.suffix == ".npy":
        return {"embeddings": np.load(path, allow_pickle=False)}
    if path.suffix == ".npz":
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        return {name: _column(table.column(name).combine_chunks()) for name in table.column_names}
    from safetensors.torch import load_file

    from dmlkd.retrieval.arrays import numpy_array

    return {name: numpy_array(tensor) for name, tensor in load_file(path).items()}


def _column(column: Any) -> NDArray[Any]:
    """A Parquet column; lists of equal length as a two-dimensional array."""
    import pyarrow as pa

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        flat = column.flatten().to_numpy(zero_copy_only=False)
        width, rest = divmod(len(flat), max(1, len(column)))
        lengths = np.asarray(column.value_lengths().to_numpy(zero_copy_only=False))
        if rest or (lengths != width).any():
            raise UserError("its lists have different lengths")
        rows: NDArray[Any] = flat.reshape(len(column), width)
        return rows
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def _first(columns: dict[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[Any] | None:
    return next((columns[name] for name in names if name in columns), None)
