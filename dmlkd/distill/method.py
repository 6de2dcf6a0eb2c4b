"""What a self-distillation method is to the rest of the library."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from dmlkd.distill.teachers import Teacher
from dmlkd.signals import Batch, Need, Signals


class DistillationMethod(nn.Module, ABC):
    """Base of the methods: a target and a comparison, without teacher and weight.

    A method's ``forward`` takes the tensors of its formula by keyword, for use in any loop. Its :meth:`from_signals`
    picks those tensors out of what student and teacher say, for use by an objective; the class says beforehand what
    it will pick, so that each thing is computed once a step for all methods together.

    Attributes:
        student_needs: fields of the student's :class:`~dmlkd.signals.Signals` that are read.
        teacher_needs: fields of the teacher's that are read; empty for a method that has no teacher.
        supervises: whether its target holds the label too, so that it trains class scores by itself, and goes on with
            the label alone (``teacher`` is None) while its teacher is not ready.
        views: how often each image must come in a batch, each time transformed anew.

    Parameters of a method are trained with the weights of the metric loss.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})

    supervises: ClassVar[bool] = False
    views: ClassVar[int] = 1

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, counted from 0, of so many in all; and when a run goes on within an epoch."""

    def after_step(self) -> None:
        """Called after each step of the optimiser; a method that draws counts them, so that processes draw alike."""

    def check_teacher(self, teacher: Teacher) -> None:
        """Refuse a teacher that this method cannot be taught by, for another reason than what it gives.

        Raises:
            ValueError: saying which would be right.
        """

    def end_epoch(self, network: nn.Module, teacher: Teacher | None) -> None:
        """Called after the last step of each epoch, before the network is validated; may change the network in place.

        Args:
            network: the student, as the step left it.
            teacher: of the term; None: it has none.
        """

    @abstractmethod
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        """Return the loss of one batch, a scalar.

        Args:
            batch: images, labels and row numbers.
            student: the student's signals, with gradient.
            teacher: the teacher's signals, without; None only if ``teacher_needs`` is empty, or if the method
                ``supervises`` and its teacher is not ready.
        """
