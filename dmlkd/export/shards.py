"""One file of embeddings: what is in it, in four formats."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dmlkd.export.rows import Identities
from dmlkd.files import replacing, sha256_of

FileFormat = Literal["safetensors", "parquet", "npy", "npz"]
DType = Literal["float32", "float16", "int8"]


class Encoded(NamedTuple):
    """Embeddings as they are stored.

    Attributes:
        embeddings: (n, D) float32, float16 or int8.
        scale: (n,) float32 by which each row of int8 is to be multiplied; None for floats.
    """

    embeddings: NDArray[Any]
    scale: NDArray[np.float32] | None


def encode(embeddings: NDArray[np.float32], dtype: DType, dim: int | None = None) -> Encoded:
    """Cut embeddings to their first dimensions, scaled to unit length again, and round them.

    int8 is round(127 z / max(abs(z))), the largest taken over each row: as all of a row has one scale, cosine
    similarity can be computed from the integers as they are.

    Args:
        embeddings: (n, D) of unit length.
        dtype: "float32", "float16" or "int8".
        dim: how many dimensions to keep; None: all, untouched.

    >>> encode(np.array([[0.6, -0.8, 0.0]], np.float32), "int8").embeddings
    array([[  95, -127,    0]], dtype=int8)
    """
    if dim is not None and dim < embeddings.shape[1]:
        cut = embeddings[:, :dim].astype(np.float64)
        lengths = np.sqrt((cut * cut).sum(axis=1, keepdims=True))
        embeddings = (cut / np.where(lengths == 0, 1, lengths)).astype(np.float32)
    if dtype != "int8":
        return Encoded(embeddings.astype(dtype, copy=False), None)
    largest = np.abs(embeddings).max(axis=1)
    scale = np.where(largest == 0, 1, largest / np.float32(127)).astype(np.float32)
    return Encoded(np.rint(embeddings / scale[:, None]).clip(-127, 127).astype(np.int8), scale)


def shard_files(stem: Path, kind: FileFormat) -> list[Path]:
    """The files of a shard: safetensors and npy, which hold no strings, have the rest in a second one."""
    main = stem.with_name(f"{stem.name}.{kind}")
    return [main, stem.with_name(f"{main.name}.rows.parquet")] if kind in ("safetensors", "npy") else [main]


def write_shard(stem: Path, kind: FileFormat, encoded: Encoded, who: Identities) -> list[Path]:
    """Write one shard, each file whole or not at all; equal contents give equal bytes.

    Args:
        stem: path without the ending.
        kind: "safetensors", "parquet", "npy" or "npz".
        encoded: the embeddings.
        who: ids, paths, labels and names of classes.

    Returns:
        What was written.
    """
    files = shard_files(stem, kind)
    with replacing(files[0]) as temporary:
        if kind == "parquet":
            _write_parquet(temporary, encoded.embeddings, encoded.scale, who)
        elif kind == "npy":
            np.save(temporary, encoded.embeddings)
        else:
            arrays: dict[str, NDArray[Any]] = {"embeddings": np.ascontiguousarray(encoded.embeddings)}
            if who.labels is not None:
                arrays["labels"] = np.ascontiguousarray(who.labels)
            if encoded.scale is not None:
                arrays["scale"] = encoded.scale
            if kind == "npz":
                texts = {"ids": who.ids, "paths": who.paths, "class_names": who.class_names}
                arrays |= {name: np.array(values, "U") for name, values in texts.items() if values is not None}
                np.savez(temporary, **arrays)  # type: ignore[arg-type]
            else:
                save_file(arrays, temporary)
    for rest in files[1:]:
        with replacing(rest) as temporary:
            _write_parquet(temporary, None, encoded.scale if kind == "npy" else None, who)
    return files


def _write_parquet(
    path: Path, embeddings: NDArray[Any] | None, scale: NDArray[np.float32] | None, who: Identities
) -> None:
    columns: dict[str, Any] = {"id": pa.array(who.ids, pa.string()), "path": pa.array(who.paths, pa.string())}
    if who.labels is not None:
        columns["label"] = pa.array(who.labels)
    if who.class_names is not None:
        columns["class_name"] = pa.array(who.class_names, pa.string())
    if embeddings is not None:
        flat = np.ascontiguousarray(embeddings).reshape(-1)
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), embeddings.shape[1])
    if scale is not None:
        columns["scale"] = pa.array(scale)
    # Floats of embeddings are as good as random: neither a dictionary nor compression makes them smaller. Integers of
    # 8 bits Parquet stores as 32; in a dictionary they are 8 again.
    small = {name: "zstd" for name in ("id", "path", "label", "class_name") if name in columns}
    repeated = ["class_name"] if "class_name" in columns else []
    if embeddings is not None and embeddings.dtype == np.int8:
        repeated.append("embedding.list.element")
    pq.write_table(pa.table(columns), path, compression=small, use_dictionary=repeated)


def checksum(path: Path) -> dict[str, Any]:
    """Bytes and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
