"""Writing files whole or not at all."""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmlkd.errors import UserError


def check_folder(path: Path) -> None:
    """Refuse a file whose folder is not there: before the work whose result it is to hold.

    Raises:
        UserError: naming the folder.
    """
    if not path.parent.is_dir():
        raise UserError(f"folder {path.parent} does not exist, so {path.name} cannot be written there")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside a file, which takes the file's place when the block ends without an error.

    Args:
        path: of the file; its folder must be there.

    Raises:
        UserError: if the folder is not there or cannot be written to.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replacing(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    check_folder(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except PermissionError:
        raise UserError(f"{path} cannot be written: permission denied") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """JSON, indented, keys in the order given; a number that is not finite, which JSON lacks, is null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any) -> None:
    """Write :func:`json_text`."""
    write_text(path, json_text(value) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows under the union of their keys, in order of appearance; what a row lacks stays empty."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def check_table(path: Path) -> None:
    """Refuse a name that :func:`write_table` could not write to.

    Raises:
        UserError: unless it ends in .csv or .parquet, in a folder that is there.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} names no table: it must end in .csv or .parquet")
    check_folder(path)


def write_table(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write columns of equal length as CSV or Parquet, by the ending of the name.

    Raises:
        UserError: for another ending, or a folder that is not there.
    """
    check_table(path)
    if path.suffix == ".csv":
        write_csv(path, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(path) as temporary:
        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), temporary)
