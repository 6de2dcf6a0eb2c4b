"""Contrast of an image's views, without labels: MoCo v2 with a margin, the first phase of method C3."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.checks import below, positive, whole
from dmlkd.distill.counting import Counter
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.posteriors import wide
from dmlkd.signals import Batch, Need, Signals


def margin_contrast(
    *,
    student: Tensor,
    teacher: Tensor,
    rows: Tensor,
    queue: Tensor,
    queue_rows: Tensor,
    temperature: float = 0.07,
    margin: float = 0.4,
) -> Tensor:
    r"""InfoNCE with a margin, against a queue of keys.

    The mean, over all i and j that are two places of one image (:math:`n_i = n_j`, :math:`i \ne j`), of

    .. math:: -\log \frac{e^{(z_i \cdot \tilde z_j - m) / T}}
              {e^{(z_i \cdot \tilde z_j - m) / T} + \sum_{k:\, \nu_k \ne n_i} e^{z_i \cdot \kappa_k / T}}

    in float32 or wider; 0 where no image comes twice, or the queue holds nothing of another image.

    Args:
        student: (B, D) z, embeddings of unit length, with gradient.
        teacher: (B, D) keys of the same places of the batch, of unit length; no gradient reaches them.
        rows: (B,) n, the image that each place shows.
        queue: (K, D) keys of earlier batches.
        queue_rows: (K,) the images that those are of; negative: a place that is not taken yet.
        temperature: T > 0.
        margin: m >= 0, taken off the cosine of the positive.

    Raises:
        ValueError: if the shapes do not fit.

    >>> z = torch.eye(2)[[0, 0]]
    >>> other = torch.tensor([[0.0, 1.0]])
    >>> told = margin_contrast(
    ...     student=z, teacher=z, rows=torch.tensor([3, 3]), queue=other, queue_rows=torch.tensor([8]), temperature=1.0
    ... )
    >>> print(f"{told:.4f}")  # log(1 + exp(0 - (1 - 0.4)))
    0.4375
    """
    if student.shape != teacher.shape or student.shape[1:] != queue.shape[1:]:
        raise ValueError(
            f"student and teacher must both be (B, D) and the queue (K, D), got {tuple(student.shape)}, "
            f"{tuple(teacher.shape)} and {tuple(queue.shape)}"
        )
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = wide(student), wide(teacher).detach()
        alike = (rows[:, None] == rows) & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        positives = (student @ teacher.t() - margin) / temperature
        negatives = student @ queue.to(student).t() / temperature
        left_out = (rows[:, None] == queue_rows) | (queue_rows < 0)
        negatives = negatives.masked_fill(left_out, -torch.inf).logsumexp(dim=1, keepdim=True)
        return F.softplus(negatives - positives).mul(alike).sum() / alike.sum().clamp(min=1)


class MomentumContrast(DistillationMethod):
    r"""Pull each view of an image to the keys of its other views, and away from a queue of keys of other images.

    MoCo v2 (Chen et al. 2020, https://arxiv.org/abs/2003.04297) with a margin taken off the positive cosine (Zhao and
    Wen 2020, https://arxiv.org/abs/2008.00261): see :func:`margin_contrast`. The network that gives the keys is the
    teacher: a moving average of the student. Labels play no part. Every image must come in the batch several times,
    each time transformed anew (:class:`~dmlkd.data.ShuffledBatchSampler`): each view is a query, and a key for the
    others, which is MoCo with a symmetric loss.

    Keys of the image itself, which a queue longer than the data set still holds from the epoch before, are left out.
    Each call takes the batch's keys into the queue after computing its loss, the oldest ones leave; the queue is in
    ``state_dict()``.

    Args:
        dim: D, the length of an embedding.
        temperature: T > 0.
        margin: m, from 0 to below 2.
        queue: K, how many keys are remembered.

    Raises:
        ValueError: for a bad number, naming it.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    views: ClassVar[int] = 2

    keys: Tensor
    rows: Tensor

    def __init__(self, *, dim: int, temperature: float = 0.07, margin: float = 0.4, queue: int = 4096) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.margin = below("margin", margin, 0, 2)
        self.register_buffer("keys", torch.zeros(whole("queue", queue), whole("dim", dim)))
        self.register_buffer("rows", torch.full((queue,), -1))
        self._next = Counter()  # the place that the next key takes

    def forward(self, *, student: Tensor, teacher: Tensor, rows: Tensor) -> Tensor:
        """Return the loss, a scalar, and remember the keys.

        Args:
            student: (B, D) embeddings of unit length, with gradient.
            teacher: (B, D) keys of the same places of the batch, of unit length.
            rows: (B,) the image that each place shows.
        """
        # The queue is copied, as it is written before the backward pass reads it.
        loss = margin_contrast(
            student=student,
            teacher=teacher,
            rows=rows,
            queue=self.keys.clone(),
            queue_rows=self.rows,
            temperature=self.temperature,
            margin=self.margin,
        )
        self._remember(teacher, rows)
        return loss

    @torch.no_grad()
    def _remember(self, keys: Tensor, rows: Tensor) -> None:
        newest = slice(max(0, len(keys) - len(self.keys)), None)
        places = (self._next.count + torch.arange(len(rows[newest]), device=rows.device)) % len(self.keys)
        self.keys[places] = keys[newest].to(self.keys)
        self.rows[places] = rows[newest]
        self._next.count = (self._next.count + len(places)) % len(self.keys)

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert teacher is not None
        loss: Tensor = self(student=student.embeddings, teacher=teacher.embeddings, rows=batch.rows)
        return loss

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, margin={self.margin}, queue={len(self.keys)}"
