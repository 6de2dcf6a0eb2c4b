"""A folder with a searchable index: FAISS's file, the ids of its rows, and a manifest with checksums.

Every change writes files under new names and then replaces the manifest, so a kill leaves the index as it was.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.files import replacing, sha256_of, write_json
from dmlkd.retrieval.arrays import Distance, checked_distance, rows32
from dmlkd.retrieval.files import EmbeddingFile, read_shards

FORMAT = 1
TRAIN_ROWS = 262_144
_MANIFEST = "manifest.json"
_KEYS = {"kind": str, "factory": str, "search": str, "distance": str, "dim": int, "rows": int, "files": dict}


class Nearest(NamedTuple):
    """What a search found, nearest first.

    Attributes:
        similarities: (Q, k) float32: inner products, cosines, or minus squared Euclidean distances; -inf where fewer
            than k were found.
        ids: (Q, k) names of the rows; empty where fewer were found.
    """

    similarities: NDArray[np.float32]
    ids: NDArray[Any]


class SearchIndex:
    """An index folder, opened for reading: FAISS's file is mapped into memory, not loaded.

    Args:
        folder: that :func:`build_index` wrote.
        search: parameters of the search, such as "nprobe=32"; None: those the folder was built with.

    Attributes:
        ids: (N,) names of the rows, removed ones included.
        removed: (N,) which are removed.
        manifest: what the folder says of itself.

    Raises:
        UserError: if it is no index folder, or a file is missing, cut short or altered since it was written: FAISS
            reads only files whose checksum is right.
    """

    def __init__(self, folder: Path, *, search: str | None = None) -> None:
        import faiss

        self.folder = folder
        self.manifest = _checked_manifest(folder)
        self.distance: Distance = checked_distance(self.manifest["distance"])
        self.ids, self.removed = _read_rows(folder, self.manifest)
        file = folder / _file(self.manifest, "index")
        self._index = _faiss(file.name, lambda: faiss.read_index(str(file), faiss.IO_FLAG_MMAP))
        if self._index.ntotal != len(self.ids) or self._index.d != self.manifest["dim"]:
            raise UserError(f"{folder}: {file.name} does not fit its manifest")
        asked = self.manifest["search"] if search is None else search
        if asked:
            _faiss(asked, lambda: faiss.ParameterSpace().set_index_parameters(self._index, asked))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return int((~self.removed).sum())

    def search(self, queries: Any, k: int, *, model: str | None = None) -> Nearest:
        """The k nearest of each query.

        Args:
            queries: (Q, D) embeddings.
            k: how many.
            model: the fingerprint of the network they are of; None: not known.

        Raises:
            UserError: if they are of another network than the index, or of other dimensions, or ``k`` is below 1.
        """
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}")
        _check_model(self.manifest, model, "the queries are", self.folder)
        rows = rows32("queries", queries, self.distance)
        if rows.shape[1] != self.manifest["dim"]:
            raise UserError(f"the queries have {rows.shape[1]} dimensions, the index {self.manifest['dim']}")
        wanted = min(k, len(self))
        ids = np.full((len(rows), k), "", dtype=np.dtypes.StringDType())
        near = np.full((len(rows), k), -np.inf, np.float32)
        if wanted:
            found, positions = self._alive(rows, wanted)
            near[:, :wanted] = np.where(positions >= 0, -found if self.distance == "euclidean" else found, -np.inf)
            ids[:, :wanted] = np.where(positions >= 0, self.ids[positions], "")
        return Nearest(near, ids)

    def _alive(self, rows: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest that are not removed: as many more are fetched as it takes, for some kinds skip none."""
        removed = int(self.removed.sum())
        fetch = k + min(removed, k)
        while True:
            found, positions = self._index.search(rows, min(fetch, self._index.ntotal))
            there = (positions >= 0) & ~self.removed[positions]
            if not removed or fetch >= k + removed or there.sum(axis=1).min() >= k:
                break
            fetch *= 2
        order = np.argsort(~there, axis=1, kind="stable")[:, :k]
        positions = np.where(there, positions, -1)
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(positions, order, axis=1)


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
        file = like / _file(known.manifest, "index")
        index = _faiss(file.name, lambda: faiss.read_index(str(file)))
        _faiss(file.name, index.reset)
    else:
        distance = checked_distance(distance)
        metric = faiss.METRIC_L2 if distance == "euclidean" else faiss.METRIC_INNER_PRODUCT
        dim = next(_shards(embeddings)).embeddings.shape[1]
        index = _faiss(factory, lambda: faiss.index_factory(dim, factory, metric))
        if not index.is_trained:
            sample = _sample(embeddings, train_rows, seed, distance)
            _faiss(factory, lambda: index.train(sample))
    if search:
        _faiss(search, lambda: faiss.ParameterSpace().set_index_parameters(index, search))  # type: ignore[arg-type]
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
    file = folder / _file(known.manifest, "index")
    index = _faiss(file.name, lambda: faiss.read_index(str(file)))
    ids, model = _add(index, embeddings, known.distance, known.manifest["dim"])
    _check_model(known.manifest, model, f"{embeddings} is", folder)
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
        _faiss("the index", lambda rows=rows: index.add(rows))
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
            _faiss("the index", lambda: faiss.write_index(index, str(temporary)))
    for what, name in names.items():
        files[what] = {"name": name, "bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    made = {"format": FORMAT, "kind": "index", "version": version}
    write_json(folder / _MANIFEST, {**known, **made, "rows": len(ids), "files": files})
    for pattern in ("index-*.faiss", "rows-*.parquet"):
        for old in folder.glob(pattern):
            if old.name not in [entry["name"] for entry in files.values()]:
                old.unlink(missing_ok=True)


def _checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index folder, its files there and as they were written."""
    path = folder / _MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is no index folder: it has no {_MANIFEST}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = [key for key, kind in _KEYS.items() if not isinstance(manifest[key], kind)]
        if wrong or manifest["kind"] != "index" or manifest["format"] != FORMAT:
            raise UserError(f"{path} is not the manifest of an index of format {FORMAT}")
        for what in ("index", "rows"):
            name, known = _file(manifest, what), manifest["files"][what]
            if Path(name).name != name:
                raise UserError(f"{path} names a file outside its folder: {name}")
            file = folder / name
            if not file.is_file() or file.stat().st_size != known["bytes"] or sha256_of(file) != known["sha256"]:
                raise UserError(f"{file} is missing, cut short or altered: it is not what its manifest says")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    return manifest


def _file(manifest: dict[str, Any], what: str) -> str:
    return str(manifest["files"][what]["name"])


def _read_rows(folder: Path, manifest: dict[str, Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    table = pq.read_table(folder / _file(manifest, "rows"))
    ids = np.array(table["id"].to_pylist(), dtype=np.dtypes.StringDType())
    return ids, table["removed"].to_numpy()


def _check_model(manifest: dict[str, Any], model: str | None, who: str, folder: Path) -> None:
    own = manifest.get("model")
    if own is not None and model is not None and own != model:
        raise UserError(f"{who} of another model ({model[:12]}) than the index {folder} ({own[:12]})")


def _faiss(what: str, work: Any) -> Any:
    """Do something in FAISS; what it refuses is one line."""
    try:
        return work()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).split("Error: ")[-1]
        raise UserError(f"FAISS refuses {what!r}: {reason}") from None
