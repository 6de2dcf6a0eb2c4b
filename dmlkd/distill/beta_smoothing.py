"""Labels smoothed more where the model is less certain: Beta smoothing, of method D3."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.checks import positive
from dmlkd.distill.counting import Counter
from dmlkd.distill.posteriors import LabelledPosteriors, check_logits, wide


def smoothed_cross_entropy(*, student: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    r"""Cross-entropy with labels smoothed by an amount for each image.

    The mean over the batch of :math:`-\sum_c t_{ic} \log p_{ic}` with
    :math:`t_i = b_i\, \mathrm{onehot}(y_i) + (1 - b_i) / C`, in float32 or wider.

    Args:
        student: (B, C) logits.
        labels: (B,) class labels.
        shares: (B,) b, the share of the label, from 0 to 1.
    """
    with torch.autocast(student.device.type, enabled=False):
        logs = F.log_softmax(wide(student), dim=1)
        shares = shares.to(logs)
        return (shares * F.nll_loss(logs, labels, reduction="none") - (1 - shares) * logs.mean(dim=1)).mean()


def ranked_beta(confidence: Tensor, *, a: float, seed: int) -> Tensor:
    """Draws from Beta(a, 1), one for each image of a batch, the larger the more confident it is.

    Args:
        confidence: (B,) whatever the images are ranked by; equal ones by their place in the batch.
        a: > 0; the mean of the draws is a / (a + 1).
        seed: of the draws, which depend on it and the size of the batch alone.

    Returns:
        The draws, (B,) float32 from 0 to 1.

    >>> ranked_beta(torch.tensor([0.2, 0.9, 0.5]), a=9, seed=0)
    tensor([0.9172, 0.9966, 0.9623])
    """
    uniform = torch.rand(len(confidence), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    draws = uniform.pow(1 / a).sort().values.float().to(confidence.device)  # U^(1/a) is Beta(a, 1)
    return torch.empty_like(draws).scatter(0, confidence.argsort(stable=True), draws)


def _log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log p / (1 - p) of the labels (B,), of logits (B, C): in the order of p, and apart where p rounds to 1."""
    own = labels[:, None]
    others = logits.scatter(1, own, -torch.inf).logsumexp(dim=1)
    return logits.gather(1, own).squeeze(1) - others


class BetaSmoothing(LabelledPosteriors):
    r"""Label smoothing by amounts drawn at random and given out by confidence.

    .. math:: t_i = b_i\, \mathrm{onehot}(y_i) + (1 - b_i) / C, \quad b_i \sim \mathrm{Beta}(a, 1)

    The draws of a batch are sorted and given to its images by the rank of the teacher's confidence in their labels,
    :math:`\tilde p_i[y_i]`: the least certain image has the smoothest target. Zhang and Sabuncu 2020,
    https://arxiv.org/abs/2006.05065, where the teacher is a moving average of the model; only the order of its
    confidences is used. While the teacher is not ready, the target is the label.

    The draws depend on how many batches came before, which is in ``state_dict()``: a resumed run draws the same, and so
    do processes that are handed the same batch.

    Args:
        a: > 0; the mean share of the label is a / (a + 1), as in label smoothing by 1 / (a + 1).

    Raises:
        ValueError: for a bad number, naming it.
    """

    supervises: ClassVar[bool] = True

    def __init__(self, *, a: float = 9.0) -> None:
        super().__init__()
        self.a = positive("a", a)
        self._batches = Counter()

    def forward(self, *, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C) and labels (B,); each call draws anew.

        Raises:
            ValueError: if student and teacher are not of the same images and classes.
        """
        if teacher is None:
            return smoothed_cross_entropy(student=student, labels=labels, shares=torch.ones_like(student[:, 0]))
        check_logits(student, teacher)
        shares = ranked_beta(_log_odds(wide(teacher).detach(), labels), a=self.a, seed=self._batches.count)
        self._batches.count += 1
        return smoothed_cross_entropy(student=student, labels=labels, shares=shares)

    @override
    def extra_repr(self) -> str:
        return f"a={self.a}"
