"""Remembered embeddings as the teacher: method A4, and the memory that it keeps."""

import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from dmlkd.distill.checks import whole
from dmlkd.distill.teachers import Lesson, Teacher
from dmlkd.signals import Batch, Need, Signals, unit_length


class RowMemory(nn.Module):
    """One vector for each row of a data set, in half precision.

    In the memory of the device that the module is moved to; or, when larger than ``mapped_above``, in a temporary file
    that is mapped into memory and stays on the CPU. Either way all of it is in ``state_dict()``.

    Args:
        rows: N, how many vectors.
        width: D, their length.
        mapped_above: bytes; N x D x 2 above this are mapped.
        folder: of the temporary file, on a disk with that much space; None: the system's. The file has no name and is
            gone with the process.

    Raises:
        ValueError: if ``rows`` or ``width`` is not a whole number of at least 1, or ``mapped_above`` is negative.
        OSError: if the file cannot be made or the disk is too small.

    >>> memory = RowMemory(rows=3, width=2)
    >>> memory.write(torch.tensor([2]), torch.tensor([[1.0, 0.5]]))
    >>> memory.read(torch.tensor([2, 0]))
    (tensor([[1.0000, 0.5000],
            [0.0000, 0.0000]]), tensor([ True, False]))
    """

    values: Tensor
    known: Tensor

    def __init__(self, *, rows: int, width: int, mapped_above: int = 2**30, folder: Path | None = None) -> None:
        super().__init__()
        shape = (whole("rows", rows), whole("width", width))
        if mapped_above < 0:
            raise ValueError(f"mapped_above must be at least 0 bytes, got {mapped_above!r}")
        self.mapped = 2 * rows * width > mapped_above
        self.register_buffer("values", _mapped(shape, folder) if self.mapped else torch.zeros(shape, dtype=torch.half))
        self.register_buffer("known", torch.zeros(rows, dtype=torch.bool))

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of some rows (B,), (B, D) float32, and which of them were ever written, (B,) bool."""
        return self.values[rows.to(self.values.device)].to(rows.device).float(), self.known[rows]

    @torch.no_grad()
    def write(self, rows: Tensor, values: Tensor) -> None:
        """Remember vectors (B, D) for some rows (B,)."""
        self.values[rows.to(self.values.device)] = values.to(self.values)
        self.known[rows] = True

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RowMemory":
        """Move to a device as any module does, but for a mapped file."""
        values = self._buffers["values"]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.mapped:
            self._buffers["values"] = values
        return self


def _mapped(shape: tuple[int, int], folder: Path | None) -> Tensor:
    with tempfile.TemporaryFile(dir=folder, prefix="dmlkd-memory-") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash at some later write
            os.posix_fallocate(file.fileno(), 0, 2 * shape[0] * shape[1])
        return torch.from_numpy(np.memmap(file, dtype=np.float16, mode="w+", shape=shape))


class RememberedTeacher(Teacher):
    """Each image's own embedding from when it was last seen, mostly in the previous epoch (method A4).

    No second forward pass: a step reads the embeddings of its rows and then remembers the student's. Unlike
    :class:`PreviousEpochTeacher`'s, the embeddings of a list come from differing steps of that epoch and from the
    augmentations of that time. Images not seen yet are left out of the lists.

    Args:
        rows: N, images in the training set.
        dim: D, the length of an embedding.
        mapped_above: bytes; a memory of N x D x 2 bytes above this is a file mapped into memory.
        folder: of that file; None: the system's temporary folder.

    Raises:
        ValueError: for a bad number, naming it.
        OSError: if there is no room for the file.
    """

    gives: frozenset[Need] = frozenset({"embeddings"})
    every_step: ClassVar[bool] = True

    def __init__(self, *, rows: int, dim: int, mapped_above: int = 2**30, folder: Path | None = None) -> None:
        super().__init__()
        self.memory = RowMemory(rows=rows, width=dim, mapped_above=mapped_above, folder=folder)
        self._epoch = 0
        self._complete = False

    @property
    @override
    def ready(self) -> bool:
        return self._epoch > 0

    @override
    def start_epoch(self, network: nn.Module, epoch: int) -> None:
        self._epoch = epoch
        self._complete = self._complete or bool(self.memory.known.all())

    @override
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        earlier, known = self.memory.read(batch.rows)
        self.memory.write(batch.rows, student.embeddings)
        positions = None
        if not self._complete:
            positions = known.nonzero().squeeze(1)
            earlier = earlier[positions]
        return Lesson((Signals(unit_length(earlier)),), positions=positions)

    @override
    def get_extra_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "complete": self._complete}

    @override
    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._epoch, self._complete = state["epoch"], state["complete"]
