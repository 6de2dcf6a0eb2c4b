"""Where an image may be: below the root, as a file or inside a zip, and nowhere else."""

import functools
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import DataError

SEPARATOR = "::"
LARGEST_FILE = 2**29
"""Bytes that one image file may have, unpacked: what a small zip can blow up to is bounded."""


_CHUNK = 65536


class Fingerprint(NamedTuple):
    """What tells without reading it whether a file may have changed: for a zip's member its size and CRC."""

    size: int
    stamp: int


def check_path(path: str) -> None:
    """Refuse a path that could lead out of the root, whatever is on the disk.

    Args:
        path: ``folder/file``, or ``archive.zip::member``.

    Raises:
        DataError: for an absolute path, one with ``..``, a backslash or a NUL, or an empty one.
    """
    for part in path.split(SEPARATOR, 1):
        bad = part.startswith("/") or "\\" in part or "\0" in part or part[1:2] == ":"
        if not part:
            raise DataError(f"path {path!r} is empty, or empty beside the ::")
        if bad or ".." in part.split("/"):
            raise DataError(f"path {path!r} is outside the root: it must be relative, without '..' or backslashes")


def check_paths(paths: NDArray[np.str_]) -> None:
    """As :func:`check_path` for a column (N,), a chunk at a time; names the first bad row."""
    for start in range(0, len(paths), _CHUNK):
        chunk = paths[start : start + _CHUNK].tolist()
        text = "\n" + "\n".join(chunk).replace(SEPARATOR, "\n") + "\n"
        if not any(sign in text for sign in ("..", "\\", "\0", ":", "\n/", "\n\n")):
            continue
        for row, path in enumerate(chunk, start):
            try:
                check_path(path)
            except DataError as error:
                raise DataError(f"row {row}: {error}") from None


def read_bytes(root: Path, path: str) -> bytes:
    """The bytes of a file below the root, or of a zip's member.

    Raises:
        DataError: if it is outside the root, missing, too large or cannot be read; the message does not name it.
    """
    check_path(path)
    file, _, member = path.partition(SEPARATOR)
    full = _below(root, file)
    try:
        if member:
            return _read_member(_archive(full, os.getpid()), member)
        if (size := full.stat().st_size) > LARGEST_FILE:
            raise DataError(f"has {size} bytes, at most {LARGEST_FILE} are read")
        return full.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{full if member else 'the file'} does not exist") from None
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None


def fingerprint(root: Path, path: str) -> Fingerprint:
    """Size and time of change of a file, or size and CRC of a zip's member.

    Raises:
        DataError: as :func:`read_bytes` does.
    """
    check_path(path)
    file, _, member = path.partition(SEPARATOR)
    full = _below(root, file)
    try:
        if member:
            info = _member(_archive(full, os.getpid()), member)
            return Fingerprint(info.file_size, info.CRC)
        status = full.stat()
        return Fingerprint(status.st_size, status.st_mtime_ns)
    except OSError:
        raise DataError(f"{full if member else 'the file'} does not exist") from None


def members(archive: Path) -> list[str]:
    """The names of the files inside a zip, sorted, without what macOS adds.

    Raises:
        DataError: if it is not a readable zip.
    """
    try:
        names = _archive(archive, os.getpid()).namelist()
    except OSError as error:
        raise DataError(f"{archive}: {error.strerror or error}") from None
    return sorted(name for name in names if not name.endswith("/") and not is_litter(name))


def is_litter(path: str) -> bool:
    """Whether a path is something that a file manager left: hidden, ``._name`` or in ``__MACOSX``.

    >>> is_litter("a/._b.jpg"), is_litter("a/b.jpg")
    (True, False)
    """
    parts = path.split("/")
    return parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)


def _below(root: Path, file: str) -> Path:
    """The file's path, refused if a symbolic link leads out of the root."""
    parent, _, name = file.rpartition("/")
    folder = _resolved(root, parent)
    full = folder / name
    if full.is_symlink() and not full.resolve().is_relative_to(_resolved(root, "")):
        raise DataError(f"a symbolic link leads outside {root}")
    return full


@functools.lru_cache(maxsize=65536)
def _resolved(root: Path, folder: str) -> Path:
    # Asked once a folder: resolving every path costs as much as decoding a small image.
    top = root.resolve()
    inside = (root / folder).resolve()
    if not inside.is_relative_to(top):
        raise DataError(f"a symbolic link leads outside {root}")
    return inside


@functools.lru_cache(maxsize=8)
def _archive(path: Path, _process: int) -> zipfile.ZipFile:
    # One handle a process: a handle shared by forked workers would share its file position.
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a readable zip file: {error}") from None


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise DataError(f"{archive.filename} has no member of this name") from None
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError("is a symbolic link inside the archive")
    if info.file_size > LARGEST_FILE:
        raise DataError(f"has {info.file_size} bytes unpacked, at most {LARGEST_FILE} are read")
    return info


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = _member(archive, name)
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"cannot be unpacked: {error}") from None
