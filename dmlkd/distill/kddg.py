"""Gradient-filtered distillation for unseen domains: method B10, KDDG."""

from torch import Tensor
from typing_extensions import override

from dmlkd.distill.checks import positive
from dmlkd.distill.posteriors import LabelledPosteriors, check_logits, posterior_divergence, wide


def behind_teacher(*, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Which images (B,) the student gives the label less probability than the teacher does.

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits.
        labels: (B,) class labels.
        temperature: T > 0 of both posteriors.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_logits(student, teacher)
    mine, theirs = ((wide(logits).detach() / temperature).softmax(dim=1) for logits in (student, teacher))
    return (mine.gather(1, labels[:, None]) < theirs.gather(1, labels[:, None])).squeeze(1)


class GradientFilteredDistillation(LabelledPosteriors):
    r"""Pull the student's class posteriors to the teacher's, but not those that are ahead of it.

    .. math:: L = \frac{T^2}{B} \sum_i [p_{i y_i} < \tilde p_{i y_i}]\, \mathrm{KL}(\tilde p_i \,\|\, p_i)

    with both posteriors at temperature T. The gradient of the divergence with respect to the label's score is
    proportional to :math:`p_{i y_i} - \tilde p_{i y_i}`, so the filter leaves out just the images whose label it would
    lower. Our reading of Wang et al. 2021, https://arxiv.org/abs/2110.04820 (KDDG), whose teacher is a finished run.

    Args:
        temperature: T > 0.

    Raises:
        ValueError: for a bad temperature.
    """

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, *, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C) and labels (B,); no gradient reaches the teacher's."""
        rows = behind_teacher(student=student, teacher=teacher, labels=labels, temperature=self.temperature)
        return posterior_divergence(student=student, teacher=teacher, temperature=self.temperature, rows=rows)

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
