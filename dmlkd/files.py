"""Writing files whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmlkd.errors import UserError


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
    if not path.parent.is_dir():
        raise UserError(f"folder {path.parent} does not exist, so {path.name} cannot be written there")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except PermissionError:
        raise UserError(f"{path} cannot be written: permission denied") from None
    finally:
        temporary.unlink(missing_ok=True)
