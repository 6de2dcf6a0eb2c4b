"""Building and changing index folders.

Every change writes files under new names and then replaces the manifest, so a kill leaves the index as it was.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.files import replacing, sha256_of, write_json
from dmlkd.retrieval.arrays import Distance, checked_distance, rows32
from dmlkd.retrieval.files import EmbeddingFile, read_shards
from dmlkd.retrieval.index import FORMAT, MANIFEST, SearchIndex, check_model, file_of, in_faiss

TRAIN_ROWS = 262_144


def build_index(
    embeddings: Path,
    out: Path,
    *,
    factory: str = "Flat",
    search: str = "",
    distance: str = "cosine",
    train_rows: int = TRAIN_ROWS,
    seed: int = 0,
    like: Path | None = None,
) -> None:
    """Build an index folder from embeddings, a shard at a time.

    Args:
        embeddings: a file or folder that :func:`~dmlkd.retrieval.files.read_shards` reads, with ids.
        out: the index folder, new or empty.
        factory: what ``faiss.index_factory`` reads: "Flat", "HNSW32", "IVF1024,Flat", "IVF1024,PQ16", ...
        search: parameters of the search, such as "nprobe=32", kept as the folder's.
        distance: "cosine", "euclidean" or "inner".
        train_rows: how many rows, drawn with ``seed``, to train on where the kind is trained.
        seed: of the draw.
        like: an index folder whose training, factory and distance to take over: the shards of one large index must
            share them to be searched as one.

    Raises:
        UserError: if the folder is taken, embeddings or ids are missing, doubled or cannot be indexed so.
    """
    import faiss

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is already there and not an empty folder; choose another")
    if train_rows < 1:
        raise UserError(f"train_rows must be at least 1, got {train_rows}")
    if like is not None:
        known = SearchIndex(like)
        factory, distance, dim = known.manifest["factory"], known.distance, known.manifest["dim"]
        search = search or known.manifest["search"]
        file = like / file_of(known.manifest, "index")
        index = in_faiss(file.name, lambda: faiss.read_index(str(file)))
        in_faiss(file.name, index.reset)
    else:
        distance = checked_distance(distance)
        metric = faiss.METRIC_L2 if distance == "euclidean" else faiss.METRIC_INNER_PRODUCT
        dim = next(_shards(embeddings)).embeddings.shape[1]
        index = in_faiss(factory, lambda: faiss.index_factory(dim, factory, metric))
        if not index.is_trained:
            sample = _sample(embeddings, train_rows, seed, distance)
            in_faiss(factory, lambda: index.train(sample))
    if search:
        in_faiss(search, lambda: faiss.ParameterSpace().set_index_parameters(index, search))  # type: ignore[arg-type]
    ids, model = _add(index, embeddings, distance, dim)
    manifest = {"factory": factory, "search": search, "distance": distance, "dim": dim, "model": model}
    _save(out, manifest, index, ids, np.zeros(len(ids), np.bool_))


def add_rows(folder: Path, embeddings: Path) -> int:
    """Add embeddings to an index folder.

    Args:
        folder: that :func:`build_index` wrote.
        embeddings: a file or folder of embeddings of the same network, with new ids.

    Returns:
        How many were added.

    Raises:
        UserError: if they are of another network or an id is there already; the folder stays as it was.
    """
    import faiss

    known = SearchIndex(folder)
    file = folder / file_of(known.manifest, "index")
    index = in_faiss(file.name, lambda: faiss.read_index(str(file)))
    ids, model = _add(index, embeddings, known.distance, known.manifest["dim"])
    check_model(known.manifest, model, f"{embeddings} is", folder)
    if len(both := set(ids) & set(known.ids[~known.removed].tolist())):
        raise UserError(f"{embeddings}: id {min(both)!r} is in the index already; remove it first")
    every = np.array([*known.ids.tolist(), *ids], dtype=np.dtypes.StringDType())
    removed = np.concatenate([known.removed, np.zeros(len(ids), np.bool_)])
    _save(folder, known.manifest, index, every.tolist(), removed)
    return len(ids)


def remove_rows(folder: Path, ids: Iterable[str]) -> int:
    """Remove rows from an index folder: they are found no more; their room is freed by building it anew.

    Args:
        folder: that :func:`build_index` wrote.
        ids: of the rows.

    Returns:
        How many were removed.

    Raises:
        UserError: for an id that is not there; nothing is removed then.
    """
    known = SearchIndex(folder)
    wanted = set(ids)
    there = np.isin(known.ids, np.array(sorted(wanted), dtype=np.dtypes.StringDType())) & ~known.removed
    if missing := wanted - set(known.ids[there].tolist()):
        raise UserError(f"{folder} has no row with the id {min(missing)!r}")
    _save(folder, known.manifest, None, known.ids.tolist(), known.removed | there)
    return int(there.sum())


def _shards(embeddings: Path) -> Iterator[EmbeddingFile]:
    for part in read_shards(embeddings):
        if part.ids is None:
            raise UserError(f"{embeddings} has no ids, which an index needs")
        yield part


def _sample(embeddings: Path, rows: int, seed: int, distance: Distance) -> NDArray[np.float32]:
    """Rows drawn evenly over all shards, in order: the smallest of one random number a row."""
    rng = np.random.default_rng(seed)
    kept: NDArray[np.float32] | None = None
    keys = np.empty(0)
    for part in _shards(embeddings):
        own = rows32(str(embeddings), part.embeddings, distance)
        keys = np.concatenate([keys, rng.random(len(own))])
        kept = own if kept is None else np.concatenate([kept, own])
        if len(keys) > rows:
            chosen = np.sort(np.argpartition(keys, rows - 1)[:rows])
            keys, kept = keys[chosen], kept[chosen]
    if kept is None:
        raise UserError(f"{embeddings} has no rows")
    return kept


def _add(index: Any, embeddings: Path, distance: Distance, dim: int) -> tuple[list[str], str | None]:
    ids: list[str] = []
    model = None
    for part in _shards(embeddings):
        rows = rows32(str(embeddings), part.embeddings, distance)
        if rows.shape[1] != dim:
            raise UserError(f"{embeddings} has {rows.shape[1]} dimensions, the index {dim}")
        assert part.ids is not None
        ids += [str(name) for name in part.ids.tolist()]
        model = part.model
        in_faiss("the index", lambda rows=rows: index.add(rows))
    if len(set(ids)) < len(ids):
        raise UserError(f"{embeddings}: id {_first_double(ids)!r} comes more than once")
    return ids, model


def _first_double(ids: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _save(folder: Path, known: dict[str, Any], index: Any, ids: list[str], removed: NDArray[np.bool_]) -> None:
    """Write what changed under new names, then the manifest, then delete what no manifest names any more."""
    import faiss

    version = int(known.get("version", 0)) + 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    files = dict(known.get("files", {}))
    names = {"rows": f"rows-{version}.parquet"} | ({} if index is None else {"index": f"index-{version}.faiss"})
    with replacing(folder / names["rows"]) as temporary:
        pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "removed": removed}), temporary, compression="zstd")
    if index is not None:
        with replacing(folder / names["index"]) as temporary:
            in_faiss("the index", lambda: faiss.write_index(index, str(temporary)))
    for what, name in names.items():
        files[what] = {"name": name, "bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    made = {"format": FORMAT, "kind": "index", "version": version}
    write_json(folder / MANIFEST, {**known, **made, "rows": len(ids), "files": files})
    for pattern in ("index-*.faiss", "rows-*.parquet"):
        for old in folder.glob(pattern):
            if old.name not in [entry["name"] for entry in files.values()]:
                old.unlink(missing_ok=True)
