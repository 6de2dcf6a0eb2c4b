"""An exit after an inner stage as the teacher of the whole network: of method B8."""

from collections.abc import Collection
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.teachers import Lesson, Teacher
from dmlkd.exits import Exit, inner_channels
from dmlkd.signals import Batch, Need, Signals


class LowerExitTeacher(Teacher):
    """Class scores read off an inner stage of the student in the same pass, by an exit trained with cross-entropy.

    Lower layers are less over-confident than the top (Park et al. 2024, https://arxiv.org/abs/2406.09719). The exit
    learns from the first step on, also while its term weighs nothing (the paper's first phase), and goes on learning
    when the term begins (:class:`~dmlkd.distill.After`), because the stage below it moves. It is no part of the
    student, and so not of the exported model.

    Args:
        stages: channels of each stage of the trunk, shallow to deep.
        classes: C.
        stage: the exit's, counted from 0; not the deepest.
        width: channels within the exit's bottleneck; None: a quarter of the deepest stage's.
        through_trunk: whether the gradient of the exit's cross-entropy reaches the stages below it. Our reading is that
            it does not: the exit reads what the lower layers know anyway, and the student without the term is the
            student without the teacher.

    Raises:
        ValueError: if there is no such inner stage, or for a number below 1.
    """

    gives: frozenset[Need] = frozenset({"logits"})
    student_needs: ClassVar[frozenset[Need]] = frozenset({"stages"})
    every_step: ClassVar[bool] = True

    def __init__(
        self,
        *,
        stages: tuple[int, ...],
        classes: int,
        stage: int = 1,
        width: int | None = None,
        through_trunk: bool = False,
    ) -> None:
        super().__init__()
        channels = inner_channels(stages, stage)
        self.stage = stage
        self.through_trunk = through_trunk
        self.exit = Exit(channels=channels, features=stages[-1], outputs=classes, width=width)

    @property
    @override
    def ready(self) -> bool:
        return True

    @override
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        assert student.stages is not None
        maps = student.stages[self.stage]
        logits: Tensor = self.exit(maps if self.through_trunk else maps.detach()).outputs.float()
        said = Signals(student.embeddings.detach(), logits=logits.detach())
        return Lesson((said,), loss=F.cross_entropy(logits, batch.labels))

    @override
    def extra_repr(self) -> str:
        return f"stage={self.stage}, through_trunk={self.through_trunk}"
