"""Selective regularisation for classes that arrive: method E1, SRIL."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from dmlkd.distill.checks import whole, within
from dmlkd.distill.embedding import check_dimension, embedding_distance
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.posteriors import check_logits, wide
from dmlkd.distill.teachers import FrozenTeacher, Teacher
from dmlkd.signals import Batch, Need, Signals


def agreeing(*, student: Tensor, teacher: Tensor, metric_gradient: Tensor) -> Tensor:
    r"""Which embeddings (B,) the metric loss moves the way that distillation does, or not at all.

    Those with :math:`\langle g_i, d_i \rangle \ge 0` for the gradient :math:`g_i` of the metric loss and :math:`d_i` of
    :math:`\lVert z_i - \tilde z_i \rVert^2`. Of the latter what is along :math:`z_i` is left out, as bringing
    embeddings to unit length undoes it: :math:`d_i = 2\, (\langle z_i, \tilde z_i \rangle z_i - \tilde z_i)`.

    Args:
        student: (B, D) embeddings of unit length.
        teacher: (B, D) embeddings of unit length.
        metric_gradient: (B, D).

    >>> z, old = torch.tensor([[1.0, 0.0]]).expand(2, 2), torch.tensor([[0.8, 0.6]]).expand(2, 2)
    >>> agreeing(student=z, teacher=old, metric_gradient=torch.tensor([[0.0, -1.0], [0.0, 1.0]]))
    tensor([ True, False])
    """
    z, old = student.detach(), teacher.detach()
    pull = (z * old).sum(dim=1, keepdim=True) * z - old
    return (metric_gradient * pull).sum(dim=1) >= 0


@torch.no_grad()
def interpolate(student: nn.Module, teacher: nn.Module, share: float) -> None:
    """Move a network's weights toward another's: to (1 - share) of its own and ``share`` of the other's, in place.

    Args:
        student: the network; its running statistics are moved too.
        teacher: with weights of the same names and shapes; others, such as class weights beside the model, stay.
        share: from 0 to 1.
    """
    theirs = teacher.state_dict()
    for name, own in student.state_dict().items():
        if name in theirs and own.is_floating_point():
            own.lerp_(theirs[name].to(own), share)


class SelectiveRegularization(DistillationMethod):
    r"""Hold embeddings to the model of the task before, where that does not stand in the way of the new classes.

    .. math:: L = \frac1B \sum_i m_i \lVert z_i - \tilde z_i \rVert^2

    with :math:`m_i = 1` for replayed images of old classes, and for images of new classes where the gradients of metric
    loss and distillation with respect to the embedding agree (:func:`agreeing`), else 0.

    After each epoch the student's weights go toward the teacher's by the share of the confidence in old classes that is
    lost,

    .. math:: \theta \leftarrow (1 - r)\, \theta + r\, \tilde\theta, \quad
        r = a \max\Big(0,\, 1 - \frac{\sum_{i \in R} p_{i y_i}}{\sum_{i \in R} \tilde p_{i y_i}}\Big)

    over the replayed images R as the epoch's steps saw them, by the class posteriors of student and teacher among the
    classes that the teacher scores: not at all where confidence has not fallen. Class weights stay as they are, running
    statistics move with the weights.

    Our reading of Han et al. 2023, https://arxiv.org/abs/2305.05175 (SRIL), which leaves open by how much and by what
    part of the network is interpolated.

    Args:
        interpolation: a, from 0 (none) to 1.
        dim: D of the student, which a teacher's must be; None: that is not checked.
        network: the student, whose weights a teacher's must fit; None: the same.
        replayed: (R,) rows of the images of old classes; None: there are none.

    Raises:
        ValueError: for a bad share, naming it.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits", "metric_gradient"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "logits"})

    def __init__(
        self,
        *,
        interpolation: float = 1.0,
        dim: int | None = None,
        network: nn.Module | None = None,
        replayed: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__()
        self.dim = None if dim is None else whole("dim", dim)
        self.interpolation = within("interpolation", interpolation, 0, 1)
        self._shapes = None if network is None else _shapes(network)
        rows = torch.from_numpy(np.empty(0, np.int64) if replayed is None else replayed)
        self.register_buffer("_replayed", rows, persistent=False)
        # Of student and teacher in old images, summed over the steps of the epoch.
        self.register_buffer("_confidence", torch.zeros(2))

    @override
    def check_teacher(self, teacher: Teacher) -> None:
        check_dimension(type(self).__name__, self.dim, teacher)
        if not isinstance(teacher, FrozenTeacher):
            raise ValueError(f"weights go toward a network's, and {type(teacher).__name__} is none")
        if self._shapes is not None and self._shapes != _shapes(teacher.network):
            raise ValueError("weights go toward the teacher's, which must be of the student's architecture")

    def forward(self, *, student: Tensor, teacher: Tensor, old: Tensor, metric_gradient: Tensor) -> Tensor:
        """Return the loss, a scalar; no gradient reaches the teacher's.

        Args:
            student: (B, D) embeddings of unit length.
            teacher: (B, D) embeddings of unit length.
            old: (B,) whether an image is replayed.
            metric_gradient: (B, D) gradient of the metric loss with respect to the student's embeddings.
        """
        held = old | agreeing(student=student, teacher=teacher, metric_gradient=metric_gradient)
        return embedding_distance(student=student, teacher=teacher, rows=held)

    @torch.no_grad()
    def watch(self, *, student: Tensor, teacher: Tensor, labels: Tensor, old: Tensor) -> None:
        """Take note of the confidence in old images.

        Args:
            student: (B, C) logits.
            teacher: (B, C) logits; minus infinity for classes that it does not know, which the student's lose too.
            labels: (B,) class labels.
            old: (B,) whether an image is replayed.
        """
        check_logits(student, teacher)
        theirs = wide(teacher)
        mine = wide(student).masked_fill(theirs == -torch.inf, -torch.inf)
        both = torch.stack([logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1) for logits in (mine, theirs)])
        self.get_buffer("_confidence").add_(torch.where(old, both, 0.0).sum(dim=1))

    @property
    def share(self) -> float:
        """r: how far the weights would go toward the teacher's if the epoch ended now."""
        mine, theirs = self.get_buffer("_confidence").tolist()
        return self.interpolation * max(0.0, 1 - mine / theirs) if theirs > 0 else 0.0

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert teacher is not None
        assert teacher.logits is not None
        assert student.logits is not None
        old = torch.isin(batch.rows, self.get_buffer("_replayed"))
        self.watch(student=student.logits, teacher=teacher.logits, labels=batch.labels, old=old)
        loss: Tensor = self(
            student=student.embeddings,
            teacher=teacher.embeddings,
            old=old,
            metric_gradient=student.metric_gradient,
        )
        return loss

    @override
    def end_epoch(self, network: nn.Module, teacher: Teacher | None) -> None:
        assert isinstance(teacher, FrozenTeacher)
        if self.share:
            interpolate(network, teacher.network, self.share)
        self.get_buffer("_confidence").zero_()

    @override
    def extra_repr(self) -> str:
        return f"interpolation={self.interpolation}"


def _shapes(network: nn.Module) -> dict[str, Any]:
    """The shapes of an embedding model's weights by name; those of class weights beside it are left out."""
    return {name: tuple(value.shape) for name, value in getattr(network, "model", network).state_dict().items()}
