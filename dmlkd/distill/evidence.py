"""Evidence of an image's class, gathered from the model's predictions, as the teacher: method B3, BSD."""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.checks import positive, within
from dmlkd.distill.posterior_memory import PosteriorMemory
from dmlkd.distill.posteriors import LabelMixing, wide
from dmlkd.distill.teachers import Lesson, Teacher
from dmlkd.signals import Batch, Need, Signals

TINY = 1e-6
"""Evidence for each class at the start, beside that for the label."""


class EvidenceTeacher(Teacher):
    r"""The mean of a Dirichlet distribution for each image, whose evidence is the model's discounted predictions.

    Our reading of BSD (Adelöw et al. 2025, https://arxiv.org/abs/2512.24162):

    .. math:: a_i = c\, \mathrm{onehot}(y_i) + \epsilon \text{ at the start}, \quad
              a_i \leftarrow \gamma a_i + p_i \text{ at each visit}, \quad t_i = a_i / \textstyle\sum a_i

    The target is that after the visit's own update, with no gradient through :math:`p_i`. The other order, the target
    before the update, would pull in the same direction: as :math:`p - t = \frac{\gamma s}{\gamma s + 1} (p - t')`, with
    s and t' the sum and the mean before the visit, the update only shortens the gradient: to 0.9 with the defaults.

    After the start no label is used: the label's own evidence fades as :math:`\gamma^n` over n visits, and the sum
    tends to :math:`1 / (1 - \gamma)`. With the defaults it is 10 all along, so that the target is a moving average of
    predictions that started at the label.

    Kept are the mean, in a :class:`~dmlkd.distill.PosteriorMemory` of single precision (half would lose the small
    changes of late visits), and the sum: N x (4 C + 4) bytes. With ``top_k`` the evidence of other classes is kept by
    its sum and spread evenly over them before each update: N x (8 k + 8) bytes. No further forward pass. Of an image
    drawn twice into a batch the last place counts as the visit. Processes that are handed the same batch gather the
    same evidence.

    Args:
        rows: N, images in the training set.
        classes: C.
        label_evidence: c > 0, for the label at the start.
        discount: gamma, from 0 to 1; at 1 nothing is forgotten.
        top_k: keep the k classes of each image with most evidence; None: keep all.
        mapped_above: bytes; a memory above this is mapped from files.
        folder: of those files; None: the system's temporary folder.

    Raises:
        ValueError: for a bad number, naming it.
        OSError: if there is no room for the files.
    """

    gives: frozenset[Need] = frozenset({"logits"})
    student_needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    every_step: ClassVar[bool] = True
    sums: Tensor

    def __init__(
        self,
        *,
        rows: int,
        classes: int,
        label_evidence: float = 10.0,
        discount: float = 0.9,
        top_k: int | None = None,
        mapped_above: int = 2**30,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.label_evidence = positive("label_evidence", label_evidence)
        self.discount = within("discount", discount, 0, 1)
        self.means = PosteriorMemory(
            rows=rows, classes=classes, top_k=top_k, single=True, mapped_above=mapped_above, folder=folder
        )
        self.register_buffer("sums", torch.full((rows,), self.label_evidence + TINY * classes))

    @property
    @override
    def ready(self) -> bool:
        return True

    @override
    @torch.no_grad()
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        assert student.logits is not None
        means, known = self.means.read(batch.rows)
        sums = self.sums[batch.rows]
        start = (self.label_evidence * F.one_hot(batch.labels, self.means.classes) + TINY) / sums[:, None]
        targets, sums = updated_means(
            means=torch.where(known[:, None], means.exp(), start),
            sums=sums,
            posteriors=F.softmax(wide(student.logits), dim=1),
            discount=self.discount,
        )
        self.means.write(batch.rows, targets.log())
        self.sums[batch.rows] = sums
        return Lesson((Signals(student.embeddings.detach(), logits=targets.log()),))


def updated_means(*, means: Tensor, sums: Tensor, posteriors: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Mean and sum of Dirichlet evidence after :math:`a <- gamma a + p`.

    Args:
        means: (B, C) evidence of each class over its sum.
        sums: (B,) sums of the evidence.
        posteriors: (B, C) p.
        discount: gamma.

    Returns:
        The means (B, C) and the sums (B,).

    >>> updated_means(means=torch.tensor([[1.0, 0.0]]), sums=torch.ones(1), posteriors=torch.ones(1, 2) / 2, discount=1)
    (tensor([[0.7500, 0.2500]]), tensor([2.]))
    """
    kept = discount * sums
    after = kept + 1
    return (kept[:, None] * means + posteriors) / after[:, None], after


def bsd() -> LabelMixing:
    """The target and comparison of BSD: cross-entropy with what the teacher, :class:`EvidenceTeacher`, says alone."""
    return LabelMixing(share=1.0)
