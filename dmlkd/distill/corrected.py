"""Posterior distillation with a first-order correction for the teacher's errors: method D4."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.checks import not_negative, one_of, positive, within
from dmlkd.distill.posteriors import LabelledPosteriors, check_logits, posterior_divergence, wide

CorrectedComparison = Literal["kl", "squared"]
"""How posteriors or logits are compared; defined in :class:`CorrectedDistillation`."""


class CorrectedDistillation(LabelledPosteriors):
    r"""Distillation whose loss is corrected, to first order, for where the teacher's posterior misses the label.

    Dao et al. 2021, https://arxiv.org/abs/2104.09732. With the teacher's logits :math:`\tilde o`, the student's
    :math:`o`, :math:`w = \mathrm{softmax}(\tilde o / T)`, :math:`q = \mathrm{softmax}(o / T)`,
    :math:`\tilde p = \mathrm{softmax}(\tilde o)`, not below ``clip``, and
    :math:`r = \mathrm{onehot}(y) / \tilde p - 1`, the mean over the batch of

    - ``"kl"``: :math:`T^2\, \mathrm{KL}(w \,\|\, q) + a \bigl( \sum_c r_c w_c \cdot \sum_c w_c \log q_c
      - \sum_c r_c w_c \log q_c \bigr)`;
    - ``"squared"``: the mean over the classes of :math:`(o_c - \tilde o_c - a\, r_c)^2`, in which T has no part.

    The correction is meant for a teacher that did not see the image (cross-fitting,
    :func:`~dmlkd.training.teachers.out_of_fold`), and for one that over- or underfits. At temperature 1 with
    a = 1 and nothing clipped, "kl" is the cross-entropy with the label up to a constant: what the teacher says of the
    other classes cancels.

    Args:
        temperature: T > 0.
        correction: a >= 0, 0 being plain distillation; None: 1 / T for "kl", 1 for "squared", as published.
        comparison: "kl" or "squared".
        clip: the least probability that the teacher is taken to give a class, from 0 to 1.

    Raises:
        ValueError: for a bad argument, naming it.
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        correction: float | None = None,
        comparison: CorrectedComparison = "kl",
        clip: float = 0.01,
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.comparison: CorrectedComparison = one_of("comparison", comparison, ("kl", "squared"))
        published = 1 / self.temperature if comparison == "kl" else 1.0
        self.correction = published if correction is None else not_negative("correction", correction)
        self.clip = within("clip", clip, 0, 1)

    def forward(self, *, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar; it may be negative.

        Args:
            student: (B, C) logits, with gradient.
            teacher: (B, C) logits of the same images; no gradient reaches them.
            labels: (B,) class labels.
        """
        check_logits(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            mine, theirs = wide(student), wide(teacher).detach()
            error = F.one_hot(labels, student.shape[1]) / theirs.softmax(dim=1).clamp(min=self.clip) - 1
            if self.comparison == "squared":
                return F.mse_loss(mine, theirs + self.correction * error)
            weights = (theirs / self.temperature).softmax(dim=1)
            pull = weights * F.log_softmax(mine / self.temperature, dim=1)
            balance = (error * weights).sum(dim=1) * pull.sum(dim=1) - (error * pull).sum(dim=1)
            plain = posterior_divergence(student=mine, teacher=theirs, temperature=self.temperature)
            return plain + self.correction * balance.mean()

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, correction={self.correction}, comparison={self.comparison}"
