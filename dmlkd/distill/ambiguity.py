"""Learning ambiguity from a lower layer: method B8."""

import torch
from torch import Tensor
from typing_extensions import override

from dmlkd.distill.checks import below, positive
from dmlkd.distill.posteriors import LabelledPosteriors, posterior_divergence, wide


def recalibrated_logits(
    logits: Tensor, labels: Tensor, *, margin: float = 0.0, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""A lower layer's logits, with the label raised to the top where the layer holds it to be another class.

    With :math:`\tilde p_i = \mathrm{softmax}(\tilde o_i / T)`, image i is extremely ambiguous if
    :math:`\max_c \tilde p_{ic} - \tilde p_{i y_i} > m`. Its label's probability is then set to the largest one and all
    are divided by their new sum; in logits that is :math:`\tilde o_{i y_i} \leftarrow \max_c \tilde o_{ic}`.

    Args:
        logits: (B, C).
        labels: (B,) class labels.
        margin: m, from 0 to below 1.
        temperature: T > 0.

    Returns:
        (B, C) logits in float32 or wider, without gradient, and (B,) which images are extremely ambiguous.

    >>> scores = torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0]])
    >>> recalibrated_logits(scores, torch.tensor([1, 0]))
    (tensor([[2., 2., 1.],
            [2., 0., 1.]]), tensor([ True, False]))
    """
    logits = wide(logits).detach()
    posterior = (logits / temperature).softmax(dim=1)
    places = labels[:, None]
    ambiguous = posterior.amax(dim=1) - posterior.gather(1, places).squeeze(1) > margin
    raised = logits.scatter(1, places, logits.amax(dim=1, keepdim=True))
    return torch.where(ambiguous[:, None], raised, logits), ambiguous


class AmbiguityDistillation(LabelledPosteriors):
    r"""Pull the top's class posteriors to those of a lower layer, with the label as likely as any where they disagree.

    .. math:: L = \frac{T^2}{B} \sum_i \mathrm{KL}\bigl(t_i \,\|\, \mathrm{softmax}(o_i / T)\bigr)

    with :math:`t_i = \mathrm{softmax}(\tilde o_i / T)` of the logits of :func:`recalibrated_logits`. Our reading of
    Park et al. 2024, https://arxiv.org/abs/2406.09719, whose teacher is an exit after a lower layer
    (:class:`~dmlkd.distill.LowerExitTeacher`) and whose term begins in a second phase (:class:`~dmlkd.distill.After`).

    Args:
        temperature: T > 0.
        margin: m, from 0 to below 1: by how much the lower layer must hold another class to be likelier than the label.

    Raises:
        ValueError: for a bad number, naming it.
    """

    def __init__(self, *, temperature: float = 1.0, margin: float = 0.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.margin = below("margin", margin, 0, 1)

    def forward(self, *, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C) and labels (B,); no gradient reaches the teacher's."""
        target, _ = recalibrated_logits(teacher, labels, margin=self.margin, temperature=self.temperature)
        return posterior_divergence(student=student, teacher=target, temperature=self.temperature)

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, margin={self.margin}"
