"""Listwise self-distillation (LSD): method A1."""

from typing import get_args

from torch import Tensor
from typing_extensions import override

from dmlkd.distill.checks import not_negative, one_of, positive, whole
from dmlkd.distill.functional import Comparison, listwise_divergence
from dmlkd.distill.method import DistillationMethod
from dmlkd.signals import Batch, Signals


class ListwiseSelfDistillation(DistillationMethod):
    r"""Pull the student's similarity lists within the batch to those of an earlier self.

    .. math:: L = \frac{\tau^2}{B} \sum_i \mathrm{KL}\bigl(\mathrm{softmax}_j(\tilde S_{ij} / \tau)
              \,\|\, \mathrm{softmax}_j(S_{ij} / \tau)\bigr)

    Zeng et al. 2022, https://arxiv.org/abs/2206.08880. There the teacher is the model as it was at the end of the
    previous epoch (:class:`~dmlkd.distill.PreviousEpochTeacher`) and epoch e of E has the weight alpha * e / E
    (:class:`~dmlkd.distill.LinearRamp`); alpha is 200 in the published parameter file and 50 in its example.

    Args:
        temperature: tau > 0.
        include_self: whether image i's list holds i itself, as published.
        negative_scale: factor >= 0 on the similarities of different classes in both lists, before the softmax.
        comparison: "kl" as published, "reverse_kl", "js" or "squared" (without temperature); see
            :func:`~dmlkd.distill.listwise_divergence`.
        mask_duplicates: leave pairs of one image drawn twice out of both lists. The published sampler draws such
            batches and the published loss keeps those pairs.
        block: rows of the B x B matrices in memory at a time, >= 1; None: as many as have 4 Mi entries.

    Raises:
        ValueError: for a bad argument, naming it.

    >>> import torch
    >>> lsd = ListwiseSelfDistillation(temperature=0.5)
    >>> z = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
    >>> earlier = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1)
    >>> print(f"{lsd(student=z, teacher=earlier):.4f}")
    0.0368
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        include_self: bool = True,
        negative_scale: float = 1.0,
        comparison: Comparison = "kl",
        mask_duplicates: bool = True,
        block: int | None = None,
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.include_self = include_self
        self.negative_scale = not_negative("negative_scale", negative_scale)
        self.comparison: Comparison = one_of("comparison", comparison, get_args(Comparison))
        self.mask_duplicates = mask_duplicates
        self.block = block if block is None else whole("block", block)

    def forward(
        self, *, student: Tensor, teacher: Tensor, labels: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Return the loss, a scalar; see :func:`~dmlkd.distill.listwise_divergence`.

        Args:
            student: (B, D) embeddings of unit length, with gradient.
            teacher: (B, D') embeddings of unit length of the same images; no gradient reaches them.
            labels: (B,) class labels, needed only if ``negative_scale`` is not 1.
            rows: (B,) indices of the images in their data set; None: no image was drawn twice.
        """
        return listwise_divergence(
            student=student,
            teacher=teacher,
            labels=labels,
            rows=rows if self.mask_duplicates else None,
            temperature=self.temperature,
            include_self=self.include_self,
            negative_scale=self.negative_scale,
            comparison=self.comparison,
            block=self.block,
        )

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert teacher is not None
        loss: Tensor = self(
            student=student.embeddings, teacher=teacher.embeddings, labels=batch.labels, rows=batch.rows
        )
        return loss

    @override
    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, include_self={self.include_self}, "
            f"negative_scale={self.negative_scale}, comparison={self.comparison}"
        )
