"""The folder of a run: one process at a time, nothing left over from one that was killed."""

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dmlkd.errors import UserError
from dmlkd.training.processes import Processes

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process, made if it is not there; released however the process ends.

    Args:
        folder: of the run.

    Raises:
        UserError: if another process holds it, or it cannot be written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"run folder {folder} cannot be written: {error.strerror}") from None
    try:
        if fcntl is not None:
            try:
                # A lock of the process, not of the open file: workers do not inherit it, so it ends with the process.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"run folder {folder} is in use by another process") from None
        _check_room(folder)
        yield
    finally:
        os.close(lock)


@contextmanager
def held_by_first(folder: Path) -> Iterator[None]:
    """:func:`held` by the first of several processes; a refusal is one in all of them."""
    with ExitStack() as stack:
        Processes.now().from_first(lambda: stack.enter_context(held(folder)))
        yield


def _check_room(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
    except OSError as error:
        raise UserError(f"run folder {folder} cannot be written: {error.strerror}") from None


def check_space(folder: Path, needed: int) -> None:
    """Refuse a folder whose disk has less space than a run is going to need.

    Args:
        folder: that is there.
        needed: bytes.

    Raises:
        UserError: naming both.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 2**20:.0f} MiB of space left, and the checkpoints of this training take about "
            f"{math.ceil(needed / 2**20)} MiB"
        )


def sweep(folder: Path) -> None:
    """Remove what a killed process was writing under a temporary name."""
    for left in [*folder.glob(".*.tmp*"), *(folder / "checkpoints").glob(".*.tmp*")]:
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
