"""A job of embedding: what is asked for, what is done already, and the manifest at its end.

Each finished shard leaves a record beside it. Whoever finishes last collects the records into the manifest, so several
processes on one folder need nothing but the folder between them.
"""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmlkd.errors import UserError, suggestion
from dmlkd.export.rows import Rows
from dmlkd.export.shards import DType, FileFormat, checksum, shard_files
from dmlkd.files import check_folder, write_json

FORMAT = 1
_SUFFIXES: dict[str, FileFormat] = {
    ".safetensors": "safetensors",
    ".parquet": "parquet",
    ".npy": "npy",
    ".npz": "npz",
}
_DIGESTED = 65536  # rows at a time


@dataclass(frozen=True)
class Job:
    """What is asked for: equal jobs give equal files.

    Attributes:
        rows: N.
        rows_sha256: of ids, paths, labels and names of classes.
        labels: whether there are labels.
        model: the fingerprint of the network.
        transform: how images are prepared, in words.
        dim: D as stored.
        dtype: of the numbers.
        files: the format of the shards.
        shard_rows: rows a shard; the last has what is left.
    """

    rows: int
    rows_sha256: str
    labels: bool
    model: str
    transform: str
    dim: int
    dtype: DType
    files: FileFormat
    shard_rows: int

    @property
    def shards(self) -> int:
        """How many."""
        return -(-self.rows // self.shard_rows)

    def span(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))


class Place:
    """Where a job's files are: a folder of shards, or one file if the name ends like one.

    Args:
        out: the folder, or a file ending in .safetensors, .parquet, .npy or .npz.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.single = _SUFFIXES.get(out.suffix)
        self._base = out.with_suffix("") if self.single else out / "part"
        # Readers of folders of Parquet, such as PyArrow's, pass over what begins with an underscore.
        name = f"{out.name}." if self.single else "_"
        names = rf"{re.escape(out.stem)}|{re.escape(out.name)}\.(rows|done|job)" if self.single else r"_?part-.+|_job"
        # Temporary files of processes that were killed.
        self._left_over = re.compile(rf"\.({names})\.\d+\.tmp\.\w+")
        self.manifest = self._base.with_name(f"{name}manifest.json")
        self.job = self._base.with_name(f"{name}job.json")

    def stem(self, shard: int) -> Path:
        """The files of a shard, without their ending."""
        return self._base if self.single else self._base.with_name(f"part-{shard:06d}")

    def record(self, shard: int) -> Path:
        """What says that a shard is finished."""
        name = f"{self.out.name}." if self.single else f"_{self.stem(shard).name}."
        return self._base.with_name(f"{name}done.json")

    def open(self, job: Job) -> None:
        """Take up a job that was begun here, or begin it.

        Raises:
            UserError: if another job's files are here, or something that is no job's.
        """
        asked = {"format": FORMAT, **asdict(job)}
        if self._begun(asked):
            return
        if self.single:
            check_folder(self.out)
        taken = self.out.exists() and not (
            self.out.is_dir() and all(path.name.startswith(".") for path in self.out.iterdir())
        )
        # Another process of the same job may have begun it just now: so it is looked for once more.
        if taken and not self._begun(asked):
            raise UserError(f"{self.out} is already there and holds no embeddings of this job; choose another name")
        try:
            self.job.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.out} cannot be written: {error.strerror}") from None
        write_json(self.job, asked)

    def _begun(self, asked: dict[str, Any]) -> bool:
        for file in (self.manifest, self.job):
            if file.is_file():
                _refuse_another(self.out, read_json(file), asked)
                return True
        return False

    def finished(self, job: Job, shard: int) -> bool:
        """Whether a shard is here, and unharmed."""
        known = self._known(job).get(shard) if self.manifest.is_file() else _record(self.record(shard))
        if known is None:
            return False
        files = shard_files(self.stem(shard), job.files)
        return list(known["files"]) == [file.name for file in files] and all(
            file.is_file() and checksum(file) == known["files"][file.name] for file in files
        )

    def _known(self, job: Job) -> dict[int, Any]:
        shards = read_json(self.manifest).get("shards", [])
        return {number: entry for number, entry in enumerate(shards) if len(shards) == job.shards}

    def finish_shard(self, job: Job, shard: int, written: list[Path]) -> None:
        """Record that a shard is finished."""
        span = job.span(shard)
        files = {file.name: checksum(file) for file in written}
        write_json(self.record(shard), {"start": span.start, "stop": span.stop, "files": files})

    def finish(self, job: Job) -> bool:
        """Write the manifest, if all shards are finished, and clear up; several processes may try.

        Returns:
            Whether all of it is finished.
        """
        if self.manifest.is_file() and not any(self.record(shard).is_file() for shard in range(job.shards)):
            return True
        before = self._known(job) if self.manifest.is_file() else {}
        shards = [_record(self.record(shard)) or before.get(shard) for shard in range(job.shards)]
        if None in shards:
            return self.manifest.is_file()  # another process has just collected the records
        write_json(self.manifest, {"format": FORMAT, **asdict(job), "shards": shards})
        for shard in range(job.shards):
            self.record(shard).unlink(missing_ok=True)
        self.job.unlink(missing_ok=True)
        for left in self.manifest.parent.iterdir():
            if self._left_over.fullmatch(left.name):
                left.unlink(missing_ok=True)
        return True


def _refuse_another(out: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    for key, value in asked.items():
        if found.get(key) != value:
            what = {"model": "another model", "rows_sha256": "other rows"}.get(
                key, f"{key} {found.get(key)!r}, not {value!r}"
            )
            raise UserError(f"{out} is already there, of a job with {what}; choose another name")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: if it cannot be read as one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read: it holds no object")
    return found


def _record(path: Path) -> dict[str, Any] | None:
    with suppress(UserError, OSError):
        return read_json(path)
    return None


def digest(rows: Rows) -> tuple[str, bool]:
    """SHA-256 of ids, paths, labels and names of classes, and whether there are labels."""
    made = hashlib.sha256()
    labelled = False
    for start in range(0, len(rows), _DIGESTED):
        who = rows.identities(start, min(start + _DIGESTED, len(rows)))
        labelled = who.labels is not None
        labels = who.labels.tolist() if who.labels is not None else None
        names = list(who.class_names) if who.class_names is not None else None
        made.update(json.dumps([list(who.ids), list(who.paths), labels, names]).encode())
    return made.hexdigest(), labelled


def file_format(out: Path, asked: str | None) -> FileFormat:
    """The format that a name or an option asks for; Parquet where neither does.

    Raises:
        UserError: for an unknown one, or where the two differ.
    """
    known = tuple(_SUFFIXES.values())
    if asked is not None and asked not in known:
        raise UserError(f"unknown format {asked!r}{suggestion(asked, known)}")
    single = _SUFFIXES.get(out.suffix)
    if single is not None and asked not in (None, single):
        raise UserError(f"{out} names a {single} file, the format asked for is {asked}")
    return single or asked or "parquet"
