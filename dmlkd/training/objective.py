"""The objective: a metric loss plus distillation terms, each with its teacher and its weight over time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmlkd.distill import Constant, DistillationMethod, Lesson, Schedule, Teacher
from dmlkd.signals import Batch, Need, Signals

_CONSTANT = Constant()


@dataclass(frozen=True)
class Term:
    """One self-distillation term: the four choices together.

    Args:
        method: the target and the comparison.
        teacher: where the target comes from; terms given the same object share its forward pass. None for a method
            that needs none, and where the teacher's embeddings are handed in (:class:`~dmlkd.SelfDistilled`).
        weight: >= 0.
        schedule: factor on the weight for each epoch.
        name: in logs; None: the name of the method's class.

    Raises:
        ValueError: for a bad weight, a teacher for a method that takes none, or one that lacks what the method reads or
            that the method refuses.
    """

    method: DistillationMethod
    teacher: Teacher | None = None
    weight: float = 1.0
    schedule: Schedule = _CONSTANT
    name: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight must be a finite number of at least 0, got {self.weight!r}")
        if self.teacher is None:
            return
        name = type(self.method).__name__
        if not self.method.teacher_needs:
            raise ValueError(f"{name} takes no teacher, got {type(self.teacher).__name__}")
        if missing := sorted(self.method.teacher_needs - self.teacher.gives):
            why = self.teacher.lacks.get(missing[0])
            raise ValueError(
                f"{name} needs its teacher's {', '.join(missing)}, got {type(self.teacher).__name__}"
                + (f": {why}" if why else "")
            )
        self.method.check_teacher(self.teacher)

    @property
    def label(self) -> str:
        """The name in logs."""
        return self.name or type(self.method).__name__


class Losses(NamedTuple):
    """The losses of one step.

    Attributes:
        total: the scalar to call ``backward()`` on: metric loss and distillation losses times their weights, and the
            teachers' own.
        metric: the metric loss, unweighted.
        distill: each distillation loss by the name of its term, unweighted; only terms whose weight is not 0.
        teachers: the losses of teachers that are themselves trained, by the name of their first term.
        weights: the weight of every term in this step, 0 included.
    """

    total: Tensor
    metric: Tensor
    distill: dict[str, Tensor]
    teachers: dict[str, Tensor]
    weights: dict[str, float]


class Objective(nn.Module):
    """A metric loss of pytorch-metric-learning plus any number of distillation terms.

    Call :meth:`start_epoch` before each epoch, the objective on each batch, :meth:`after_step` after each step, and
    :meth:`end_epoch` after the last of an epoch.
    A term whose weight is 0, or whose teacher has nothing to teach yet, costs nothing, unless its teacher learns from
    every step. Metric loss, methods and teachers are submodules: they move with the objective and are in its
    ``state_dict()``.

    Args:
        metric_loss: called as ``metric_loss(embeddings, labels, indices)``.
        terms: the distillation terms.
        miner: called as ``miner(embeddings, labels)``; gives the indices. None: the loss takes all pairs or triplets.
        metric_weight: factor >= 0 on the metric loss; at 0 it is not computed, and the terms alone train.

    Raises:
        ValueError: if two terms have one name, one has no teacher and needs it, or for a bad weight.

    >>> import torch
    >>> from pytorch_metric_learning.losses import ContrastiveLoss
    >>> from dmlkd import Batch, EmbeddingModel
    >>> from dmlkd.distill import LinearRamp, ListwiseSelfDistillation, PreviousEpochTeacher
    >>> _ = torch.manual_seed(0)
    >>> model = EmbeddingModel(in_channels=1, dim=8)
    >>> teacher = PreviousEpochTeacher(model)
    >>> lsd = Term(ListwiseSelfDistillation(), teacher, weight=50, schedule=LinearRamp(), name="lsd")
    >>> objective = Objective(ContrastiveLoss(), [lsd])
    >>> batch = Batch(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]), torch.arange(4))
    >>> for epoch in range(2):
    ...     objective.start_epoch(model, epoch, 2)
    ...     losses = objective(model.signals(batch.images, objective.student_needs), batch)
    ...     print(losses.weights, list(losses.distill))  # then losses.total.backward(), optimizer.step() and
    ...     objective.after_step(model)
    {'lsd': 0.0} []
    {'lsd': 25.0} ['lsd']
    """

    def __init__(
        self,
        metric_loss: Callable[..., Tensor],
        terms: Sequence[Term] = (),
        *,
        miner: Callable[..., object] | None = None,
        metric_weight: float = 1.0,
    ) -> None:
        super().__init__()
        names = [term.label for term in terms]
        if len(set(names)) < len(names):
            raise ValueError(f"terms must have different names, got {names}")
        for term in terms:
            if term.method.teacher_needs and term.teacher is None:
                raise ValueError(f"{type(term.method).__name__} needs a teacher, got None")
        if not (math.isfinite(metric_weight) and metric_weight >= 0):
            raise ValueError(f"metric_weight must be a finite number of at least 0, got {metric_weight!r}")
        self.metric_loss = metric_loss
        self.metric_weight = metric_weight
        self.miner = miner
        self.terms = tuple(terms)
        self.methods = nn.ModuleDict({term.label: term.method for term in terms})
        self.teachers = nn.ModuleList(self._teachers())
        self._progress = (0, 1)

    def get_extra_state(self) -> dict[str, int]:
        """How far the schedules are."""
        return dict(zip(("epoch", "epochs"), self._progress, strict=True))

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self._move(state["epoch"], state["epochs"])

    def _move(self, epoch: int, epochs: int) -> None:
        self._progress = (epoch, epochs)
        for term in self.terms:
            term.method.start_epoch(epoch, epochs)

    @property
    def student_needs(self) -> frozenset[Need]:
        """What to ask the student for: the union of what methods and teachers read, but for what the objective adds."""
        methods = (term.method.student_needs for term in self.terms)
        asked = frozenset[Need]().union(*methods, *(teacher.student_needs for teacher in self._teachers()))
        return asked - {"metric_gradient"}

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term now."""
        return {term.label: self._weight(term) for term in self.terms}

    def _weight(self, term: Term) -> float:
        if term.teacher is not None and not term.teacher.ready and not term.method.supervises:
            return 0.0
        return term.weight * term.schedule(*self._progress)

    def start_epoch(self, network: nn.Module, epoch: int, epochs: int) -> None:
        """Move the schedules to an epoch and let the teachers take what they need from the network.

        Args:
            network: the student, as the previous epoch left it.
            epoch: counted from 0.
            epochs: how many there are in all.
        """
        self._move(epoch, epochs)
        for teacher in self._teachers():
            teacher.start_epoch(network, epoch)

    def after_step(self, network: nn.Module) -> None:
        """Let methods and teachers know of a step of the optimiser; teachers follow the network.

        Args:
            network: the student, as the step left it.
        """
        for term in self.terms:
            term.method.after_step()
        for teacher in self._teachers():
            teacher.after_step(network)

    def end_epoch(self, network: nn.Module) -> None:
        """Let methods whose term has weight do what they do to the network at the end of an epoch.

        Args:
            network: the student, as the last step of the epoch left it.
        """
        for term in self.terms:
            if self._weight(term):
                term.method.end_epoch(network, term.teacher)

    def loss_parameters(self) -> list[nn.Parameter]:
        """The weights of the metric losses, such as proxies: the objective's own, its methods' and its teachers'."""
        own = list(self.metric_loss.parameters()) if isinstance(self.metric_loss, nn.Module) else []
        return (
            own
            + list(self.methods.parameters())
            + [p for teacher in self._teachers() for p in teacher.loss_parameters()]
        )

    def _teachers(self) -> list[Teacher]:
        return list({id(t.teacher): t.teacher for t in self.terms if t.teacher is not None}.values())

    def forward(self, student: Signals, batch: Batch) -> Losses:
        """Compute every loss of a batch.

        Args:
            student: the student's signals of the batch, with at least ``student_needs``.
            batch: images, labels and rows; the images are what the teachers see.
        """
        if not self.metric_weight:
            return self.with_terms(student.embeddings.new_zeros(()), student, batch)
        indices = self.miner(student.embeddings, batch.labels) if self.miner is not None else None
        metric = self.metric_loss(student.embeddings, batch.labels, indices)
        return self.with_terms(metric, student, batch)

    def with_terms(self, metric: Tensor, student: Signals, batch: Batch) -> Losses:
        """Add the terms to a metric loss that is computed already; arguments as of :meth:`forward`."""
        weights = self.weights
        if any(weights[term.label] and "metric_gradient" in term.method.student_needs for term in self.terms):
            student = student._replace(metric_gradient=_gradient(metric, student.embeddings))
        lessons = self._teach(weights, student, batch)
        distill: dict[str, Tensor] = {}
        teachers: dict[str, Tensor] = {}
        total = metric if self.metric_weight == 1 else self.metric_weight * metric
        for term in self.terms:
            lesson = None if term.teacher is None or not term.teacher.ready else lessons.get(id(term.teacher))
            if weights[term.label]:
                distill[term.label] = _distillation(term.method, lesson, student, batch)
                total = total + weights[term.label] * distill[term.label]
        for teacher in self._teachers():
            lesson = lessons.get(id(teacher))
            if lesson is not None and lesson.loss is not None:
                first = next(term.label for term in self.terms if term.teacher is teacher)
                teachers[first] = lesson.loss
                total = total + lesson.loss
        if not total.requires_grad:  # nothing teaches yet: a step whose gradient is 0
            total = total + 0 * student.embeddings.sum()
        return Losses(total, metric, distill, teachers, weights)

    def _teach(self, weights: dict[str, float], student: Signals, batch: Batch) -> dict[int, Lesson]:
        """What each distinct teacher says, asked once for the union of what its active terms read."""
        lessons = {}
        for teacher in self._teachers():
            active = [term for term in self.terms if term.teacher is teacher and weights[term.label]]
            if not teacher.ready and not teacher.every_step:
                continue
            if active or teacher.every_step:
                needs = frozenset[Need]().union(*(term.method.teacher_needs for term in active))
                lessons[id(teacher)] = teacher.teach(batch=batch, student=student, needs=needs)
        return lessons


def _gradient(loss: Tensor, embeddings: Tensor) -> Tensor:
    """The gradient (B, D) of a loss with respect to embeddings; 0 where it does not depend on them."""
    if not loss.requires_grad or not embeddings.requires_grad:
        return torch.zeros_like(embeddings)
    (found,) = torch.autograd.grad(loss, embeddings, retain_graph=True, allow_unused=True)
    return torch.zeros_like(embeddings) if found is None else found.detach()


def _distillation(method: DistillationMethod, lesson: Lesson | None, student: Signals, batch: Batch) -> Tensor:
    """The loss of one method: the sum over the networks that teach, of the images that they know."""
    if lesson is None:
        return method.from_signals(batch=batch, student=student, teacher=None)
    losses = []
    for share, signals, positions in zip(lesson.shares, lesson.signals, lesson.positions_of_each, strict=True):
        if positions is None:
            losses.append(share * method.from_signals(batch=batch, student=student, teacher=signals))
        elif len(positions) >= 2:
            part, of_student = batch.take(positions), student.take(positions)
            losses.append(share * method.from_signals(batch=part, student=of_student, teacher=signals))
    return torch.stack(losses).sum() if losses else student.embeddings.new_zeros(())
