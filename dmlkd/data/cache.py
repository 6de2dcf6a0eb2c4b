"""A decoded cache: every image decoded once, into a memory-mapped file of uint8 that processes share.

A store is a folder with ``pixels.bin``, the images one after the other; ``index.bin``, a record an image; and
``store.json``, written last: without it the store is not finished, and building goes on after the last whole record.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray

from dmlkd.data.checking import Reading, Readings, unreadable
from dmlkd.data.images import Preparation
from dmlkd.data.loading import in_order
from dmlkd.data.places import fingerprint, read_bytes
from dmlkd.data.splits import Unreadable
from dmlkd.data.table import ImageTable
from dmlkd.errors import DataError, UserError
from dmlkd.files import write_json

FORMAT = 1
_RECORD = np.dtype(
    [("offset", "<i8"), ("height", "<i4"), ("width", "<i4"), ("size", "<i8"), ("stamp", "<i8"), ("digest", "V16")]
)
_AT_ONCE = 256  # images between two times that what is written is made safe


class StoredPixels:
    """The images of a store, or some of its rows; each process maps the file for itself.

    Args:
        file: the pixels, one image after the other.
        channels: of every image.
        index: (M,) the store's records.
        rows: (N,) which of them, in order.
    """

    def __init__(self, file: Path, channels: int, index: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self._file = file
        self._channels = channels
        self._index = index
        self._rows = rows
        heights, widths = index["height"][rows], index["width"][rows]
        self._size = (int(heights[0]), int(widths[0])) if len(rows) else (0, 0)
        if (heights != self._size[0]).any() or (widths != self._size[1]).any():
            self._size = (0, 0)  # they differ
        self._mapped: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> Any:
        """One image (C, H, W) for an integer; a view of several rows for a mask or an array."""
        if not isinstance(rows, int | np.integer):
            return StoredPixels(self._file, self._channels, self._index, self._rows[rows])
        record = self._index[self._rows[rows]]
        height, width, start = int(record["height"]), int(record["width"]), int(record["offset"])
        length = self._channels * height * width
        return self._pixels()[start : start + length].reshape(self._channels, height, width)

    def stack(self, rows: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """Several images (B, C, H, W) at once; None if the rows are not all of one size."""
        height, width = self._size
        if not height:
            return None
        length = self._channels * height * width
        starts = self._index["offset"][self._rows[rows]]
        pixels = self._pixels()
        out = np.empty((len(rows), length), np.uint8)
        for place, start in enumerate(starts.tolist()):
            out[place] = pixels[start : start + length]
        return out.reshape(len(rows), self._channels, height, width)

    def _pixels(self) -> NDArray[np.uint8]:
        if self._mapped is None:
            self._mapped = np.memmap(self._file, np.uint8, mode="r")
        return self._mapped

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}  # a map would be sent to a worker with all its bytes


def cached(
    table: ImageTable, preparation: Preparation, folder: Path, *, skip: bool = False, workers: int = 0
) -> tuple[ImageTable, tuple[Unreadable, ...]]:
    """The table with its images decoded: from a store below ``folder``, built now if it is not there.

    A store belongs to the paths of the table and the preparation. Equal calls from several processes wait for one
    another; one that was cut off is gone on with.

    Args:
        table: images in files; returned as it is if they are decoded already.
        preparation: what is done to each image before it is stored.
        folder: may hold any number of stores.
        skip: pass over images that cannot be read.
        workers: processes that decode; 0: this one.

    Returns:
        The table, its ``pixels`` memory-mapped, and the images that could not be read, whose pixels must not be used.

    Raises:
        DataError: if an image cannot be read, naming it (not with ``skip``); if the store is damaged, or stale because
            files have changed since.
        UserError: if the folder cannot be written to.
    """
    if table.pixels is not None:
        return table, ()
    store = folder / _key(table, preparation)
    try:
        store.mkdir(parents=True, exist_ok=True)
        with _locked(store):
            if not (store / "store.json").is_file():
                _build(store, table, preparation, skip=skip, workers=workers)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise UserError(f"cache {store} cannot be written: {reason}") from None
    index = _opened(store, preparation.channels, len(table))
    _refuse_stale(store, table, index)
    bad = _unreadable(table, preparation, index)
    if bad and not skip:
        raise DataError(f"row {bad[0].row}: {bad[0].path}: cannot be read as an image: {bad[0].reason}")
    pixels = StoredPixels(store / "pixels.bin", preparation.channels, index, np.arange(len(table)))
    return replace(table, pixels=pixels), bad


def _key(table: ImageTable, preparation: Preparation) -> str:
    facts = {"format": FORMAT, "pillow": PIL.__version__, "rows": len(table), **asdict(preparation)}
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12)
    for start in range(0, len(table), 65536):
        digest.update("\n".join(table.paths[start : start + 65536].tolist()).encode())
    if preparation.crop and table.boxes is not None:
        digest.update(table.boxes.tobytes())
    return digest.hexdigest()


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Alone in this folder; the lock goes with the process, however that ends."""
    try:
        import fcntl
    except ImportError:
        raise UserError("a cache needs a system with file locks (fcntl): leave data.cache out") from None
    with (store / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(store: Path, table: ImageTable, preparation: Preparation, *, skip: bool, workers: int) -> None:
    with (store / "pixels.bin").open("ab") as pixels, (store / "index.bin").open("ab") as index:
        done = _whole(store, preparation.channels)
        _refuse_stale(store, table, done)
        end = int(_ends(done, preparation.channels).max(initial=0))
        pixels.truncate(end)
        index.truncate(len(done) * _RECORD.itemsize)
        readings = in_order(Readings(table, preparation, start=len(done)), workers=workers)
        while some := list(islice(readings, _AT_ONCE)):
            bad = next((reading for reading in some if reading.reason), None)
            if bad is not None and not skip:
                some = some[: bad.row - some[0].row]
            end = _append(pixels, index, table, some, end)
            if bad is not None and not skip:
                path = table.paths[bad.row]
                raise DataError(f"row {bad.row}: {path}: cannot be read as an image: {bad.reason}")
    write_json(store / "store.json", {"format": FORMAT, "rows": len(table), "bytes": end, **asdict(preparation)})


def _append(pixels: BinaryIO, index: BinaryIO, table: ImageTable, readings: Sequence[Reading], end: int) -> int:
    """Write images, then their records: a record that is there has its pixels. Returns where the pixels end."""
    assert table.root is not None
    records = np.zeros(len(readings), _RECORD)
    for record, reading in zip(records, readings, strict=True):
        if reading.digest is not None:
            record["size"], record["stamp"] = fingerprint(table.root, str(table.paths[reading.row]))
            record["digest"] = reading.digest
        record["offset"] = end
        if reading.pixels is not None:
            _, record["height"], record["width"] = reading.pixels.shape
            pixels.write(reading.pixels.tobytes())
            end += reading.pixels.nbytes
    for file in (pixels, index):
        if file is index:
            index.write(records.tobytes())
        file.flush()
        os.fsync(file.fileno())
    return end


def _ends(index: NDArray[Any], channels: int) -> NDArray[np.int64]:
    ends: NDArray[np.int64] = index["offset"] + channels * index["height"].astype(np.int64) * index["width"]
    return ends


def _records(store: Path) -> NDArray[Any]:
    content = (store / "index.bin").read_bytes()
    return np.frombuffer(content[: len(content) // _RECORD.itemsize * _RECORD.itemsize], _RECORD)


def _whole(store: Path, channels: int) -> NDArray[Any]:
    """The records of an unfinished store whose pixels are all there."""
    index = _records(store)
    there = _ends(index, channels) <= (store / "pixels.bin").stat().st_size
    return index[: int(np.argmin(there)) if not there.all() else len(index)]


def _opened(store: Path, channels: int, rows: int) -> NDArray[Any]:
    try:
        due = json.loads((store / "store.json").read_text())["bytes"]
        index = _records(store)
        size = (store / "pixels.bin").stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cache {store} is damaged: {error}; delete the folder to build it again") from None
    if len(index) != rows or size != due or int(_ends(index, channels).max(initial=0)) != due:
        found = f"{len(index)} of {rows} records, {size} of {due} bytes"
        raise DataError(f"cache {store} is damaged: {found}; delete the folder to build it again")
    return index


def _refuse_stale(store: Path, table: ImageTable, index: NDArray[Any]) -> None:
    """Refuse a store whose files have changed: another size or time, and another content."""
    assert table.root is not None
    changed = []
    for row, record in enumerate(index):
        path = str(table.paths[row])
        try:
            now = tuple(fingerprint(table.root, path))
            if now != (record["size"], record["stamp"]):
                content = hashlib.blake2b(read_bytes(table.root, path), digest_size=16).digest()
                if content != record["digest"].tobytes():
                    changed.append(path)
        except DataError:
            if record["height"]:
                changed.append(path)
    if changed:
        raise DataError(
            f"cache {store} is stale: {len(changed)} images have changed since, such as {changed[0]}; "
            "delete the folder to build it again"
        )


def _unreadable(table: ImageTable, preparation: Preparation, index: NDArray[Any]) -> tuple[Unreadable, ...]:
    """The images without pixels, with the reasons, which reading them again tells."""
    readings = Readings(table, preparation, keep=False)
    return unreadable(table, [readings[row] for row in np.flatnonzero(index["height"] == 0).tolist()])
