"""Two dropout masks that teach each other: method B6, SD-Dropout."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.checks import below, positive
from dmlkd.distill.counting import Counter
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.posteriors import check_logits, wide
from dmlkd.signals import Batch, Need, Signals


def mutual_divergence(*, first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    r"""How far two class posteriors are from each other, with gradient to both.

    The mean over the batch of :math:`T^2 [\mathrm{KL}(p \,\|\, q) + \mathrm{KL}(q \,\|\, p)] = T^2 \sum_c (p_c - q_c)
    (\log p_c - \log q_c)`, in float32 or wider.

    Args:
        first: (B, C) logits of p.
        second: (B, C) logits of q.
        temperature: T > 0 of both.

    Raises:
        ValueError: if the shapes do not fit.

    >>> o = torch.tensor([[2.0, 0.0, -1.0]])
    >>> mutual_divergence(first=o, second=o).item()
    0.0
    """
    check_logits(first, second)
    with torch.autocast(first.device.type, enabled=False):
        log_p = F.log_softmax(wide(first) / temperature, dim=1)
        log_q = F.log_softmax(wide(second) / temperature, dim=1)
        return temperature**2 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1).mean()


class SelfDistillationDropout(DistillationMethod):
    r"""Two dropout masks on the trunk's features, one classifier, and each posterior pulled to the other.

    .. math:: T^2 \bigl[\mathrm{KL}(p^u \,\|\, p^v) + \mathrm{KL}(p^v \,\|\, p^u)\bigr]

    Lee et al. 2022, https://arxiv.org/abs/2208.05642: gradient through both, rate 0.5. There is no teacher and one pass
    of the trunk; the classifier, here embedding head and class weights, runs on both.

    The masks depend on the number of the step alone, so that processes that share a batch draw alike.

    Args:
        classify: from features (B, F) to class scores (B, C).
        rate: share of the features that a mask leaves out, from 0 to below 1; those left are scaled by 1 / (1 - rate).
        temperature: T > 0.

    Raises:
        ValueError: for a bad number, naming it.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, *, classify: Callable[[Tensor], Tensor], rate: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__()
        self.rate = below("rate", rate, 0, 1)
        self.temperature = positive("temperature", temperature)
        self._classify = (classify,)  # in a tuple: where it is a module, its weights are not this method's to train
        self._steps = Counter()

    def forward(self, *, features: Tensor) -> Tensor:
        """Return the loss, a scalar, of pooled trunk features (B, F)."""
        first, second = (features * mask for mask in dropout_masks(features, rate=self.rate, seed=self._steps.count))
        (classify,) = self._classify
        return mutual_divergence(first=classify(first), second=classify(second), temperature=self.temperature)

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert student.features is not None
        loss: Tensor = self(features=student.features)
        return loss

    @override
    def after_step(self) -> None:
        self._steps.count += 1

    @override
    def extra_repr(self) -> str:
        return f"rate={self.rate}, temperature={self.temperature}"


def dropout_masks(features: Tensor, *, rate: float, seed: int) -> Tensor:
    """Two independent masks (2, B, F) for features (B, F): 0, or 1 / (1 - rate) with probability 1 - rate.

    Args:
        features: their shape, type and device.
        rate: from 0 to below 1.
        seed: of the draw, which is made on the CPU and so the same on every device.

    >>> dropout_masks(torch.zeros(1, 4), rate=0.5, seed=0)
    tensor([[[0., 2., 0., 0.]],
    <BLANKLINE>
            [[0., 2., 0., 2.]]])
    """
    drawn = torch.rand(2, *features.shape, generator=torch.Generator().manual_seed(seed))
    return ((drawn >= rate) / (1 - rate)).to(features)
