"""A folder with a searchable index, opened: FAISS's file, the ids of its rows, and a manifest with checksums."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.files import sha256_of
from dmlkd.retrieval.arrays import Distance, checked_distance, rows32

FORMAT = 1
MANIFEST = "manifest.json"
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
        folder: that :func:`~dmlkd.retrieval.indexing.build_index` wrote.
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
        file = folder / file_of(self.manifest, "index")
        self._index = in_faiss(file.name, lambda: faiss.read_index(str(file), faiss.IO_FLAG_MMAP))
        if self._index.ntotal != len(self.ids) or self._index.d != self.manifest["dim"]:
            raise UserError(f"{folder}: {file.name} does not fit its manifest")
        asked = self.manifest["search"] if search is None else search
        if asked:
            in_faiss(asked, lambda: faiss.ParameterSpace().set_index_parameters(self._index, asked))  # type: ignore[arg-type]

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
        check_model(self.manifest, model, "the queries are", self.folder)
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


def _checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index folder, its files there and as they were written."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is no index folder: it has no {MANIFEST}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = [key for key, kind in _KEYS.items() if not isinstance(manifest[key], kind)]
        if wrong or manifest["kind"] != "index" or manifest["format"] != FORMAT:
            raise UserError(f"{path} is not the manifest of an index of format {FORMAT}")
        for what in ("index", "rows"):
            name, known = file_of(manifest, what), manifest["files"][what]
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


def file_of(manifest: dict[str, Any], what: str) -> str:
    """Name of the file of the "index" or the "rows"."""
    return str(manifest["files"][what]["name"])


def _read_rows(folder: Path, manifest: dict[str, Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    table = pq.read_table(folder / file_of(manifest, "rows"))
    ids = np.array(table["id"].to_pylist(), dtype=np.dtypes.StringDType())
    return ids, table["removed"].to_numpy()


def check_model(manifest: dict[str, Any], model: str | None, who: str, folder: Path) -> None:
    """Refuse embeddings of another model than the index's, where both are known.

    Raises:
        UserError: naming both.
    """
    own = manifest.get("model")
    if own is not None and model is not None and own != model:
        raise UserError(f"{who} of another model ({model[:12]}) than the index {folder} ({own[:12]})")


def in_faiss(what: str, work: Any) -> Any:
    """Do something in FAISS; what it refuses is one line.

    Raises:
        UserError: naming what it was given, and its reason.
    """
    try:
        return work()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).split("Error: ")[-1]
        raise UserError(f"FAISS refuses {what!r}: {reason}") from None
