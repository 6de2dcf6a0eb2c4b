"""A drop-in for the metric loss in somebody else's training loop."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from dmlkd.distill import Lesson, Teacher
from dmlkd.signals import Batch, Need, Signals, unit_length
from dmlkd.training.objective import Objective, Term


class SelfDistilled(nn.Module):
    """A metric loss of pytorch-metric-learning plus self-distillation terms, called as the metric loss alone is.

    The teacher's embeddings of the batch come with the call, or from a teacher that :meth:`watch` has run on the images
    that the network saw last: that way it fits into trainers that know nothing of teachers.

    Args:
        metric_loss: called as ``metric_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)``.
        terms: without teachers: each gets the embeddings handed in. Its methods may read nothing else.

    Raises:
        ValueError: if a term has a teacher of its own, or its method reads more than embeddings.

    >>> from pytorch_metric_learning.losses import ContrastiveLoss
    >>> from dmlkd.distill import LinearRamp, ListwiseSelfDistillation
    >>> loss = SelfDistilled(ContrastiveLoss(), [Term(ListwiseSelfDistillation(), weight=50, schedule=LinearRamp())])
    >>> z, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> print(f"{loss(z, labels):.3f}")  # epoch 0: the ramp is at 0 and no teacher is needed
    1.414
    >>> loss.start_epoch(1, epochs=2)
    >>> print(f"{loss(z, labels, teacher=torch.ones(4, 3)):.3f}")
    4.099
    """

    def __init__(self, metric_loss: Callable[..., Tensor], terms: Sequence[Term]) -> None:
        super().__init__()
        for term in terms:
            if term.teacher is not None:
                raise ValueError(f"term {term.label} must come without a teacher, got {type(term.teacher).__name__}")
            if extra := (term.method.student_needs | term.method.teacher_needs) - {"embeddings"}:
                raise ValueError(f"term {term.label} reads {', '.join(sorted(extra))}, there are only embeddings")
        self._given = _GivenTeacher()
        taught = [replace(t, teacher=self._given) if t.method.teacher_needs else t for t in terms]
        self.objective = Objective(metric_loss, taught)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Move the schedules.

        Args:
            epoch: counted from 0.
            epochs: how many there are in all.
        """
        self.objective.start_epoch(self, epoch, epochs)

    def watch(self, network: nn.Module, teacher: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Run a teacher on whatever images the network sees in training, for the call that follows.

        Args:
            network: the student, or the trunk of it that takes the images.
            teacher: from images to (B, D') embeddings, such as a :class:`~dmlkd.distill.PreviousEpochTeacher` of the
                whole student; not run while the terms weigh nothing or it is not ready.

        Returns:
            A handle; its ``remove()`` ends this.
        """

        def run(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
            if not (module.training and torch.is_grad_enabled()):
                return
            idle = isinstance(teacher, Teacher) and not teacher.ready
            self._given.present = not idle
            if not idle and self._weighs():
                with torch.no_grad():
                    self._given.embeddings = teacher(inputs[0])

        return network.register_forward_hook(run)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        teacher: Tensor | None = None,
    ) -> Tensor:
        """Return metric loss + sum of weights times distillation losses, a scalar.

        Args:
            embeddings: (B, D); brought to unit length for the terms.
            labels: (B,) class labels.
            indices_tuple: pairs or triplets from a miner.
            ref_emb: (R, D) embeddings that the metric loss compares with; None: the batch's own.
            ref_labels: (R,) their labels.
            teacher: (B, D') the teacher's embeddings of the same images.

        Raises:
            ValueError: if a term has weight and there are no embeddings of the teacher, or not B of them.
        """
        metric = self.objective.metric_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if teacher is not None:
            self._given.present, self._given.embeddings = True, teacher
        try:
            if self._given.present and self._weighs() and self._given.embeddings is None:
                raise ValueError(
                    "the terms have weight and need the teacher's embeddings: pass teacher= or call watch()"
                )
            batch = Batch(embeddings, labels, torch.arange(len(labels), device=labels.device))
            return self.objective.with_terms(metric, Signals(unit_length(embeddings)), batch).total
        finally:
            self._given.embeddings = None

    def _weighs(self) -> bool:
        return any(self.objective.weights[t.label] for t in self.objective.terms if t.teacher is self._given)


class _GivenTeacher(Teacher):
    """Says what it was handed."""

    gives = frozenset[Need]({"embeddings"})

    def __init__(self) -> None:
        super().__init__()
        self.present = True
        self.embeddings: Tensor | None = None

    @property
    @override
    def ready(self) -> bool:
        return self.present

    @override
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        assert self.embeddings is not None
        return Lesson((Signals(unit_length(self.embeddings.detach())),))
