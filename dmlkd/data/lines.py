"""Text files with a row an image, as the data sets come with."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmlkd.data.places import check_paths
from dmlkd.data.table import strings
from dmlkd.errors import DataError


def fields(path: Path, width: int, *, skip: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line, counted from 1, and its fields, split at any white space.

    Args:
        path: of the file.
        width: fields that each line must have.
        skip: lines of header.

    Raises:
        DataError: if the file is missing or no text, or a line has more or fewer fields.
    """
    for number, line in enumerate(text_lines(path)[skip:], skip + 1):
        if not line.strip():
            continue
        found = line.split()
        if len(found) != width:
            raise DataError(f"{path}:{number}: {width} fields are due, found {len(found)}: {line.strip()[:80]!r}")
        yield number, found


def text_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: if it is missing or no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def check_header(path: Path, due: str, *, line: int) -> None:
    """Refuse a file whose header is another.

    Args:
        path: of the file.
        due: the header's fields.
        line: where it stands, counted from 1.

    Raises:
        DataError: naming file, line, header found and header due.
    """
    lines = text_lines(path)
    found = lines[line - 1].split() if len(lines) >= line else []
    if found != due.split():
        raise DataError(f"{path}:{line}: the header must be {due!r}, found {' '.join(found)[:80]!r}")


def whole(text: str, path: Path, number: int) -> int:
    """A whole number in a line.

    Raises:
        DataError: naming file and line.
    """
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{path}:{number}: a whole number is due, found {text!r}") from None


def path_column(values: list[str], source: Path) -> NDArray[np.str_]:
    """A column of paths, none of which leads out of the root.

    Raises:
        DataError: naming the file that lists them, and the row.
    """
    column = strings(values)
    try:
        check_paths(column)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    return column


def inside(root: Path, folder: str, marker: str) -> Path:
    """The root, or the folder of this name in it, whichever holds a certain file.

    Raises:
        DataError: if neither does.
    """
    for place in (root, root / folder):
        if (place / marker).exists():
            return place
    raise DataError(f"{root} holds neither {marker} nor {folder}/{marker}")
