"""Distillation from an expert of confused classes beside the old model: method E2."""

import torch
from torch import Tensor
from typing_extensions import override

from dmlkd.distill.posteriors import PosteriorDistillation, check_logits, posterior_divergence


class DiscriminativeDistillation(PosteriorDistillation):
    r"""Pull the student's class posteriors to the teacher's, among the classes that the teacher knows.

    .. math:: L = \frac{T^2}{B} \sum_i \mathrm{KL}(\tilde p_i \,\|\, p_i), \quad
        p_i = \mathrm{softmax}_{c \in K}(o_{ic} / T)

    and :math:`\tilde p_i` likewise, for the classes K whose score by the teacher is not minus infinity. Over all
    classes the same target would take away the probability of every class that the teacher does not know.

    Given twice, for the old model and for an expert that was trained on the new classes and on the old ones most easily
    confused with them, it is our reading of Zhong et al. 2021, https://arxiv.org/abs/2108.05187.

    Args:
        temperature: T > 0.
        comparison: "kl", "reverse_kl" or "symmetric_kl".

    Raises:
        ValueError: for a bad argument, naming it.

    >>> teacher = torch.tensor([[1.0, 0.0, -torch.inf]])
    >>> round(DiscriminativeDistillation()(student=torch.tensor([[1.0, 0.0, 9.0]]), teacher=teacher).item(), 6)
    0.0
    """

    @override
    def forward(self, *, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C); no gradient reaches the teacher's."""
        check_logits(student, teacher)
        unknown = teacher == -torch.inf
        # Of which exp is 0, and differences are numbers, as those of minus infinity are not.
        lowest = torch.finfo(student.dtype).min / 4
        return posterior_divergence(
            student=student.masked_fill(unknown, lowest),
            teacher=teacher.masked_fill(unknown, lowest),
            temperature=self.temperature,
            comparison=self.comparison,
        )
