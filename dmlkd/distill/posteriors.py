"""Class posteriors compared: the formulas of section B, as pure functions of logits, and the methods that use them."""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.checks import one_of, positive, within
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.schedules import Constant, Schedule
from dmlkd.signals import Batch, Need, Signals

PosteriorComparison = Literal["kl", "reverse_kl", "symmetric_kl"]
"""How two posteriors are compared; defined in :func:`posterior_divergence`."""


def posterior_divergence(
    *,
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    comparison: PosteriorComparison = "kl",
    rows: Tensor | None = None,
) -> Tensor:
    r"""How far the student's class posteriors are from the teacher's.

    With :math:`p_i = \mathrm{softmax}(o_i / T)` and :math:`\tilde p_i` likewise of the teacher, the mean over the batch
    of :math:`T^2\, \mathrm{KL}(\tilde p_i \,\|\, p_i)` ("kl"; Hinton et al. 2015, https://arxiv.org/abs/1503.02531),
    :math:`T^2\, \mathrm{KL}(p_i \,\|\, \tilde p_i)` ("reverse_kl"), or the sum of both ("symmetric_kl"). Computed in
    float32 or wider. Nothing flows back to the teacher. Of a class with score minus infinity in the teacher's
    logits, nothing is asked by "kl".

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits.
        temperature: T > 0.
        comparison: "kl", "reverse_kl" or "symmetric_kl".
        rows: (B,) weight of each image in the mean, which stays one over B; None: 1.

    Returns:
        The loss, a scalar >= 0 (up to rounding), 0 when both posteriors are the same.

    Raises:
        ValueError: if the shapes do not fit, or there is no such comparison.

    >>> o = torch.tensor([[2.0, 0.0, -1.0]])
    >>> posterior_divergence(student=o, teacher=o).item()
    0.0
    """
    one_of("comparison", comparison, get_args(PosteriorComparison))
    check_logits(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        mine = F.log_softmax(wide(student) / temperature, dim=1)
        theirs = F.log_softmax(wide(teacher).detach() / temperature, dim=1)
        loss = torch.zeros_like(mine[:, 0])
        if comparison != "reverse_kl":
            each = F.kl_div(mine, theirs, reduction="none", log_target=True)
            loss = loss + torch.where(theirs == -torch.inf, 0.0, each).sum(dim=1)
        if comparison != "kl":
            loss = loss + F.kl_div(theirs, mine, reduction="none", log_target=True).sum(dim=1)
        return temperature**2 * (loss if rows is None else loss * rows).mean()


def mixed_cross_entropy(*, student: Tensor, teacher: Tensor | None, labels: Tensor, share: float) -> Tensor:
    r"""Cross-entropy with the label mixed with the teacher's posterior.

    The mean over the batch of :math:`-\sum_c t_{ic} \log p_{ic}` with
    :math:`t_i = (1 - a)\, \mathrm{onehot}(y_i) + a\, \tilde p_i`. Computed in float32 or wider; nothing flows back to
    the teacher.

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits; None where ``share`` is 0.
        labels: (B,) class labels.
        share: a, from 0 to 1.

    Raises:
        ValueError: if the shapes do not fit.
    """
    with torch.autocast(student.device.type, enabled=False):
        mine = F.log_softmax(wide(student), dim=1)
        loss = F.nll_loss(mine, labels)
        if not share:
            return loss
        assert teacher is not None
        check_logits(student, teacher)
        target = wide(teacher).detach().softmax(dim=1)
        return (1 - share) * loss - share * (target * mine).sum(dim=1).mean()


def wide(logits: Tensor) -> Tensor:
    """Logits in float32 or wider."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits that are not of the same images and classes.

    Raises:
        ValueError: giving both shapes.
    """
    if student.ndim != 2 or student.shape != teacher.shape or not len(student):
        raise ValueError(
            f"student and teacher must be (B, C) logits of the same images and classes, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )


class PosteriorDistillation(DistillationMethod):
    """Pull the student's class posteriors to the teacher's: :func:`posterior_divergence` as a method.

    Args:
        temperature: T > 0.
        comparison: "kl", "reverse_kl" or "symmetric_kl".

    Raises:
        ValueError: for a bad argument, naming it.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset({"logits"})

    def __init__(self, *, temperature: float = 4.0, comparison: PosteriorComparison = "kl") -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.comparison: PosteriorComparison = one_of("comparison", comparison, get_args(PosteriorComparison))

    def forward(self, *, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C); no gradient reaches the teacher's."""
        return posterior_divergence(
            student=student, teacher=teacher, temperature=self.temperature, comparison=self.comparison
        )

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert teacher is not None
        assert teacher.logits is not None
        assert student.logits is not None
        loss: Tensor = self(student=student.logits, teacher=teacher.logits)
        return loss

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, comparison={self.comparison}"


class LabelledPosteriors(DistillationMethod):
    """Base of the methods whose formula is one of logits and labels.

    Their ``forward`` takes ``student`` and ``labels`` and, unless the method has no ``teacher_needs``, ``teacher``: the
    teacher's logits, None while the teacher of a method that ``supervises`` has nothing to teach.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset({"logits"})

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        taught = {"teacher": None if teacher is None else teacher.logits} if self.teacher_needs else {}
        loss: Tensor = self(student=student.logits, labels=batch.labels, **taught)
        return loss


class CrossEntropy(LabelledPosteriors):
    r"""Cross-entropy with the label, :math:`-\log p_{y}`: what trains an auxiliary head where no other term does.

    >>> round(CrossEntropy()(student=torch.zeros(1, 4), labels=torch.tensor([2])).item(), 4)
    1.3863
    """

    teacher_needs: ClassVar[frozenset[Need]] = frozenset()
    supervises: ClassVar[bool] = True

    def forward(self, *, student: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C) and labels (B,)."""
        return mixed_cross_entropy(student=student, teacher=None, labels=labels, share=0.0)


class LabelMixing(LabelledPosteriors):
    r"""Cross-entropy with a target between label and teacher's posterior.

    .. math:: t = (1 - a_e)\, \mathrm{onehot}(y) + a_e\, \tilde p

    :func:`mixed_cross_entropy` as a method. While the teacher has nothing to teach yet, the target is the label.

    Args:
        share: a, the teacher's, from 0 to 1.
        growth: factor on the share for each epoch; None: 1.

    Raises:
        ValueError: for a bad share, naming it.
    """

    supervises: ClassVar[bool] = True

    def __init__(self, *, share: float = 0.8, growth: Schedule | None = None) -> None:
        super().__init__()
        self.share = within("share", share, 0, 1)
        self.growth = growth or Constant()
        self._now = self.share

    @override
    def start_epoch(self, epoch: int, epochs: int) -> None:
        self._now = self.share * self.growth(epoch, epochs)

    def forward(self, *, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C) and labels (B,); no gradient reaches the teacher's."""
        share = self._now if teacher is not None else 0.0
        return mixed_cross_entropy(student=student, teacher=teacher, labels=labels, share=share)
