"""Cross-fitting: each image is taught by the network that did not see it."""

from collections.abc import Collection, Sequence

from torch import Tensor, nn
from typing_extensions import override

from dmlkd.distill.teachers import FrozenTeacher, Lesson, Mode, Teacher
from dmlkd.signals import Batch, Need, Signals


class OutOfFoldTeacher(Teacher):
    """Several networks, each of which teaches the images that it was not trained on.

    The teacher of method D4 (https://arxiv.org/abs/2104.09732, section 4): K networks, each trained on all folds of the
    images but one. A batch falls into as many parts, one a network, and the share of a part in a term's loss is that in
    the batch. For a loss that is a mean over rows, such as one of posteriors, this is the loss of the whole batch;
    a list of similarities is of the images of one part, as embeddings of two networks cannot be compared. Each image
    is embedded once. A part of a single image is left out, as in every lesson.

    Args:
        networks: K of them; taken over, not copied.
        teaches: (N,) for each row of the data set the network that did not see it, 0 to K - 1.
        mode: "eval" or "train", as of :class:`FrozenTeacher`.
        chunk_size: as of :class:`FrozenTeacher`.

    Raises:
        ValueError: if there is no network, a row has none, or for a bad ``mode`` or ``chunk_size``.

    >>> import torch
    >>> teacher = OutOfFoldTeacher([nn.Linear(2, 2), nn.Linear(2, 2)], torch.tensor([0, 1, 0, 1]))
    >>> [positions.tolist() for positions in teacher.parts(torch.tensor([3, 0, 2]))]
    [[1, 2], [0]]
    """

    teaches: Tensor

    def __init__(
        self,
        networks: Sequence[nn.Module],
        teaches: Tensor,
        *,
        mode: Mode = "eval",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("networks must be at least one, got none")
        if len(teaches) and not 0 <= int(teaches.min()) <= int(teaches.max()) < len(networks):
            found = f"{int(teaches.min())} to {int(teaches.max())}"
            raise ValueError(f"teaches must be from 0 to {len(networks) - 1}, a network for each row, got {found}")
        self.members = nn.ModuleList(FrozenTeacher(network, mode=mode, chunk_size=chunk_size) for network in networks)
        self.register_buffer("teaches", teaches.long())

    @property
    @override
    def dims(self) -> frozenset[int]:
        return frozenset(dim for member in self.members for dim in member.dims)  # type: ignore[union-attr]

    @property
    @override
    def ready(self) -> bool:
        return True

    def parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """For each network the positions in a batch of rows (B,) that it teaches, ascending."""
        which = self.teaches[rows]
        return tuple((which == index).nonzero().squeeze(1) for index in range(len(self.members)))

    @override
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        signals: list[Signals] = []
        shares, positions = [], []
        for member, part in zip(self.members, self.parts(batch.rows), strict=True):
            if len(part) >= 2:
                assert isinstance(member, FrozenTeacher)
                lesson = member.teach(batch=batch.take(part), student=student.take(part), needs=needs)
                signals += lesson.signals
                shares.append(len(part) / len(batch.rows))
                positions.append(part)
        return Lesson(tuple(signals), tuple(shares), tuple(positions))
