"""The model's own earlier prediction as the teacher: method B2, PS-KD."""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.posterior_memory import PosteriorMemory, one_hot_logs
from dmlkd.distill.posteriors import LabelMixing, wide
from dmlkd.distill.schedules import LinearRamp, Schedule
from dmlkd.distill.teachers import Lesson, Teacher
from dmlkd.signals import Batch, Need, Signals


class RememberedPosteriorTeacher(Teacher):
    """Each image's own class posterior from when it was last trained on; before that, the one-hot of its label.

    The prediction is that of the training pass, with the augmentation and the weights of that step. With each image
    once an epoch, as the default sampler gives them, what teaches in epoch e is the prediction of epoch e - 1, as
    published. An image that an epoch leaves out keeps its prediction. One that comes twice in an epoch, as with
    ``train.sampler: published``, is taught at its second visit by the first: a prediction of the epoch before for every
    visit would take a second memory. Of an image drawn twice into a batch both places are taught by the earlier
    prediction, and that of the last is remembered.

    No further forward pass. Memory, of :class:`~dmlkd.distill.PosteriorMemory`: N x C x 2 bytes, N x (6 k + 2) with
    ``top_k``. What is remembered depends on rows and predictions alone, so that processes that are handed the same
    batch remember alike.

    Args:
        rows: N, images in the training set.
        classes: C.
        top_k: keep the k largest probabilities of each image and spread the rest evenly; None: keep all.
        mapped_above: bytes; a memory above this is mapped from files.
        folder: of those files; None: the system's temporary folder.

    Raises:
        ValueError: for a bad number, naming it.
        OSError: if there is no room for the files.
    """

    gives: frozenset[Need] = frozenset({"logits"})
    student_needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    every_step: ClassVar[bool] = True

    def __init__(
        self,
        *,
        rows: int,
        classes: int,
        top_k: int | None = None,
        mapped_above: int = 2**30,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.memory = PosteriorMemory(rows=rows, classes=classes, top_k=top_k, mapped_above=mapped_above, folder=folder)

    @property
    @override
    def ready(self) -> bool:
        return True

    @override
    @torch.no_grad()
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        assert student.logits is not None
        earlier, known = self.memory.read(batch.rows)
        self.memory.write(batch.rows, F.log_softmax(wide(student.logits), dim=1))
        taught = torch.where(known[:, None], earlier, one_hot_logs(batch.labels, self.memory.classes))
        return Lesson((Signals(student.embeddings.detach(), logits=taught),))


def ps_kd(*, share: float = 0.8, growth: Schedule | None = None) -> LabelMixing:
    r"""The target and comparison of PS-KD (Kim et al. 2021, https://arxiv.org/abs/2006.12000).

    .. math:: L = \mathrm{CE}(t_i, p_i), \quad t_i = (1 - a_e)\, \mathrm{onehot}(y_i) + a_e\, \tilde p_i,
              \quad a_e = a_E \frac{e + 1}{E}

    with :math:`\tilde p_i` of :class:`RememberedPosteriorTeacher`. In epoch 0 this is cross-entropy with the label.

    Args:
        share: a_E, the teacher's share in the last epoch, from 0 to 1.
        growth: factor on the share for each epoch; None: (e + 1) / E, as published.

    Raises:
        ValueError: for a bad share, naming it.
    """
    return LabelMixing(share=share, growth=growth or LinearRamp(ends_full=True))
