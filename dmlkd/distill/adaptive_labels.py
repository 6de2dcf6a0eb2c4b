"""Learned residual labels over the wrong classes: method B4, adaptive label regularisation."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.checks import positive, whole
from dmlkd.distill.posteriors import LabelledPosteriors, wide
from dmlkd.signals import Need


class ResidualLosses(NamedTuple):
    """What :func:`residual_divergence` gives.

    Attributes:
        student: trains the student alone.
        residual: trains the residual correlations alone.
    """

    student: Tensor
    residual: Tensor


def residual_divergence(
    *, student: Tensor, residual: Tensor, labels: Tensor, temperature: float = 1.0
) -> ResidualLosses:
    r"""How far the student's posterior over the wrong classes is from the residual label, for each side to learn from.

    With :math:`q_i = \mathrm{softmax}_{k \ne y_i} R_{y_i k}`, :math:`r_i = \mathrm{softmax}_{k \ne y_i} o_{ik} / T` and
    a bar over what is held fixed, the means over the batch of

    .. math:: T^2\, \mathrm{KL}(\bar q_i \,\|\, r_i), \qquad (1 - \bar p_{i y_i})\, \mathrm{KL}(\bar r_i \,\|\, q_i)

    the first for the student, the second for R, which so learns most from the images that the student has wrong. The
    score of the right class is in neither. Computed in float32 or wider.

    Args:
        student: (B, C) logits o, of at least 3 classes: one wrong class alone is always certain.
        residual: (B, C) the row of R of each image's label; what it holds at the label is not read.
        labels: (B,) class labels y.
        temperature: T > 0.

    Raises:
        ValueError: if the shapes do not fit.

    >>> losses = residual_divergence(
    ...     student=torch.tensor([[9.0, 1.0, 0.0]]), residual=torch.tensor([[0.0, 1.0, 0.0]]), labels=torch.tensor([0])
    ... )
    >>> losses.student.item(), losses.residual.item()
    (0.0, 0.0)
    """
    if student.ndim != 2 or student.shape != residual.shape or student.shape[1] < 3:
        raise ValueError(
            "student and residual must be (B, C) scores of the same images and at least 3 classes, "
            f"got {tuple(student.shape)} and {tuple(residual.shape)}"
        )
    with torch.autocast(student.device.type, enabled=False):
        scores = wide(student)
        mine = _over_wrong_classes(scores / temperature, labels)
        theirs = _over_wrong_classes(wide(residual), labels)
        wrong = 1 - scores.detach().softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
        return ResidualLosses(
            student=temperature**2 * _divergence(theirs.detach(), mine).mean(),
            residual=(wrong * _divergence(mine.detach(), theirs)).mean(),
        )


def _over_wrong_classes(scores: Tensor, labels: Tensor) -> Tensor:
    right = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels[:, None], True)
    # Not -inf: the difference of two of these is finite, and 0 times it is 0.
    return F.log_softmax(scores.masked_fill(right, torch.finfo(scores.dtype).min / 2), dim=1)


def _divergence(target: Tensor, log: Tensor) -> Tensor:
    return (target.exp() * (target - log)).sum(dim=1)


class AdaptiveLabels(LabelledPosteriors):
    r"""Pull the student's wrong classes to labels that are learned with it: :func:`residual_divergence` as a method.

    Our reading of Ding et al. 2019, https://arxiv.org/abs/1908.05474, where the text leaves open how the two sides
    share a step: here one optimiser moves both, and neither loss has a gradient for the other's side. R starts at 0,
    which asks for equal wrong classes, as label smoothing does; its diagonal is not used. R is a parameter, so it is
    trained like the metric loss's class weights, in the checkpoint, and not in the exported model. It takes C x C
    floats, and as many for the gradient and for each moment of the optimiser.

    Args:
        classes: C, at least 3.
        temperature: T > 0 of the student's posterior over the wrong classes.

    Raises:
        ValueError: for a bad number, naming it.
    """

    teacher_needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, *, classes: int, temperature: float = 1.0) -> None:
        super().__init__()
        if whole("classes", classes) < 3:
            raise ValueError(f"classes must be at least 3, so that there are two wrong ones, got {classes}")
        self.temperature = positive("temperature", temperature)
        self.residual = nn.Parameter(torch.zeros(classes, classes))

    def forward(self, *, student: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of both losses, a scalar, of logits (B, C) and labels (B,)."""
        losses = residual_divergence(
            student=student, residual=self.residual[labels], labels=labels, temperature=self.temperature
        )
        return losses.student + losses.residual

    @override
    def extra_repr(self) -> str:
        return f"classes={len(self.residual)}, temperature={self.temperature}"
