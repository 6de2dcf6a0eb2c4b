"""Embeddings pulled to the teacher's own: what keeps an old index searchable by a new model."""

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from dmlkd.distill.checks import whole
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.teachers import Teacher
from dmlkd.signals import Batch, Need, Signals


def embedding_distance(*, student: Tensor, teacher: Tensor, rows: Tensor | None = None) -> Tensor:
    r"""How far embeddings are from the teacher's of the same images.

    .. math:: L = \frac1B \sum_i m_i \lVert z_i - \tilde z_i \rVert^2

    Nothing flows back to the teacher.

    Args:
        student: (B, D) embeddings.
        teacher: (B, D) embeddings.
        rows: (B,) m, the weight of each image in the mean, which stays one over B; None: 1.

    Returns:
        The loss, a scalar from 0 to 4 for unit embeddings and weights up to 1.

    Raises:
        ValueError: if the shapes do not fit.

    >>> import torch
    >>> embedding_distance(student=torch.tensor([[1.0, 0.0]]), teacher=torch.tensor([[0.0, 1.0]])).item()
    2.0
    """
    if student.ndim != 2 or student.shape != teacher.shape or not len(student):
        raise ValueError(
            "student and teacher must be (B, D) embeddings of the same images and dimension, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    squares = (student - teacher.detach()).square().sum(dim=1)
    return (squares if rows is None else squares * rows).mean()


def check_dimension(method: str, dim: int | None, teacher: Teacher) -> None:
    """Refuse a teacher whose embeddings have another dimension than the student's, as far as that is known.

    Args:
        method: in the message.
        dim: D of the student; None: not known.
        teacher: of the term.

    Raises:
        ValueError: giving both.
    """
    others = sorted(teacher.dims - {dim})
    if dim is not None and others:
        raise ValueError(
            f"{method} compares embeddings of one dimension, the teacher's have {others[0]}, the student's {dim}"
        )


class EmbeddingDistillation(DistillationMethod):
    """Pull each embedding to the teacher's of the same image: :func:`embedding_distance` as a method.

    Plain feature distillation, and what a retrained model needs if embeddings of the one before shall stay in use.

    Args:
        dim: D of the student; a teacher of another dimension is then refused beforehand. None: when they are compared.

    Raises:
        ValueError: for a bad dimension.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})

    def __init__(self, *, dim: int | None = None) -> None:
        super().__init__()
        self.dim = None if dim is None else whole("dim", dim)

    @override
    def check_teacher(self, teacher: Teacher) -> None:
        check_dimension(type(self).__name__, self.dim, teacher)

    def forward(self, *, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar, of embeddings (B, D); no gradient reaches the teacher's."""
        return embedding_distance(student=student, teacher=teacher)

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert teacher is not None
        loss: Tensor = self(student=student.embeddings, teacher=teacher.embeddings)
        return loss
