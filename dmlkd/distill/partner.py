"""Another image of the same class as the teacher: method B1, CS-KD."""

from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from dmlkd.distill.counting import Counter
from dmlkd.distill.teachers import Lesson, Teacher
from dmlkd.signals import Batch, Need, Signals


class PartnerTeacher(Teacher):
    """What the student says of another image of the same class in the batch, drawn at random.

    With :class:`~dmlkd.distill.PosteriorDistillation` at temperature 4 this is CS-KD (Yun et al. 2020,
    https://arxiv.org/abs/2003.13964), which loads a partner for each image; here the batch has several images of each
    class, so there is no further pass. Images whose class has no other image in the batch are left out. A place of the
    same image drawn twice is no partner.

    The draw depends on the number of the step alone, so that processes that share a batch draw alike.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    gives: frozenset[Need] = frozenset({"logits"})

    def __init__(self) -> None:
        super().__init__()
        self._steps = Counter()

    @property
    @override
    def ready(self) -> bool:
        return True

    @override
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        partners = partners_of(batch.labels, batch.rows, seed=self._steps.count)
        positions = (partners >= 0).nonzero().squeeze(1)
        said = student.only(needs).take(partners[positions]).map(Tensor.detach)
        return Lesson((said,), positions=positions)

    @override
    def after_step(self, network: nn.Module) -> None:
        self._steps.count += 1


def partners_of(labels: Tensor, rows: Tensor, *, seed: int) -> Tensor:
    """For each image of a batch the position of another image of its class, each equally likely; -1 where none is.

    Args:
        labels: (B,) class labels.
        rows: (B,) indices of the images in their data set.
        seed: of the draw.

    >>> partners_of(torch.tensor([3, 3, 5]), torch.tensor([0, 1, 2]), seed=0)
    tensor([ 1,  0, -1])
    """
    may = (labels[:, None] == labels) & (rows[:, None] != rows)
    drawn = torch.rand(may.shape, generator=torch.Generator().manual_seed(seed)).to(may.device).masked_fill(~may, -1.0)
    chance, partner = drawn.max(dim=1)
    return partner.masked_fill(chance < 0, -1)
