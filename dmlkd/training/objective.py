"""The objective: a metric loss plus distillation terms, each with its teacher and its weight over time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from dmlkd.distill import Constant, DistillationMethod, Schedule, Teacher
from dmlkd.signals import Batch, Need, Signals

_CONSTANT = Constant()


@dataclass(frozen=True)
class Term:
    """One self-distillation term: the four choices together.

    Args:
        method: the target and the comparison.
        teacher: where the target comes from; terms given the same object share its forward pass. None for a method
            that needs none.
        weight: >= 0.
        schedule: factor on the weight for each epoch.
        name: in logs; None: the name of the method's class.

    Raises:
        ValueError: for a bad weight, or a teacher that is missing or not needed.
    """

    method: DistillationMethod
    teacher: Teacher | None
    weight: float
    schedule: Schedule = _CONSTANT
    name: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight must be a finite number of at least 0, got {self.weight!r}")
        if bool(self.method.teacher_needs) != (self.teacher is not None):
            wants = "needs a teacher" if self.method.teacher_needs else "takes no teacher"
            raise ValueError(f"{type(self.method).__name__} {wants}, got teacher={self.teacher!r}")

    @property
    def label(self) -> str:
        """The name in logs."""
        return self.name or type(self.method).__name__


class Losses(NamedTuple):
    """The losses of one step.

    Attributes:
        total: the scalar to call ``backward()`` on: metric + sum of weights times distillation losses.
        metric: the metric loss.
        distill: each distillation loss by the name of its term, unweighted; only terms whose weight is not 0.
        weights: the weight of every term in this step, 0 included.
    """

    total: Tensor
    metric: Tensor
    distill: dict[str, Tensor]
    weights: dict[str, float]


class Objective(nn.Module):
    """A metric loss of pytorch-metric-learning plus any number of distillation terms.

    Call :meth:`start_epoch` before each epoch, the objective on each batch, and :meth:`after_step` after each step.
    A term whose weight is 0, or whose teacher has nothing to teach yet, costs nothing. Metric loss, methods and
    teachers are submodules: they move with the objective and are in its ``state_dict()``; teachers are frozen.

    Args:
        metric_loss: called as ``metric_loss(embeddings, labels, indices)``.
        terms: the distillation terms.
        miner: called as ``miner(embeddings, labels)``; gives the indices. None: the loss takes all pairs or triplets.

    Raises:
        ValueError: if two terms have one name.

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
    ) -> None:
        super().__init__()
        names = [term.label for term in terms]
        if len(set(names)) < len(names):
            raise ValueError(f"terms must have different names, got {names}")
        self.metric_loss = metric_loss
        self.miner = miner
        self.terms = tuple(terms)
        self.methods = nn.ModuleDict({term.label: term.method for term in terms})
        self.teachers = nn.ModuleList(self._teachers())
        self._progress = (0, 1)

    @property
    def student_needs(self) -> frozenset[Need]:
        """What to ask the student for: the union of what the terms read."""
        return frozenset[Need]().union(*(term.method.student_needs for term in self.terms))

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term now."""
        return {term.label: self._weight(term) for term in self.terms}

    def _weight(self, term: Term) -> float:
        if term.teacher is not None and not term.teacher.ready:
            return 0.0
        return term.weight * term.schedule(*self._progress)

    def start_epoch(self, network: nn.Module, epoch: int, epochs: int) -> None:
        """Move the schedules to an epoch and let the teachers take what they need from the network.

        Args:
            network: the student, as the previous epoch left it.
            epoch: counted from 0.
            epochs: how many there are in all.
        """
        self._progress = (epoch, epochs)
        for teacher in self._teachers():
            teacher.start_epoch(network, epoch)

    def after_step(self, network: nn.Module) -> None:
        """Let the teachers follow the network, after a step of the optimiser.

        Args:
            network: the student, as the step left it.
        """
        for teacher in self._teachers():
            teacher.after_step(network)

    def _teachers(self) -> list[Teacher]:
        return list({id(t.teacher): t.teacher for t in self.terms if t.teacher is not None}.values())

    def forward(self, student: Signals, batch: Batch) -> Losses:
        """Compute every loss of a batch.

        Args:
            student: the student's signals of the batch, with at least ``student_needs``.
            batch: images, labels and rows; the images are what the teachers see.
        """
        indices = self.miner(student.embeddings, batch.labels) if self.miner is not None else None
        metric = self.metric_loss(student.embeddings, batch.labels, indices)
        weights = self.weights
        active = [term for term in self.terms if weights[term.label]]
        taught = self._teach(active, batch)
        distill = {
            term.label: term.method.from_signals(batch=batch, student=student, teacher=taught.get(id(term.teacher)))
            for term in active
        }
        total = metric
        for name, loss in distill.items():
            total = total + weights[name] * loss
        return Losses(total, metric, distill, weights)

    def _teach(self, active: Sequence[Term], batch: Batch) -> dict[int, Signals]:
        """Each distinct teacher's signals, computed once with the union of what its terms read."""
        needs: dict[int, frozenset[Need]] = {}
        teachers: dict[int, Teacher] = {}
        for term in active:
            if term.teacher is not None:
                key = id(term.teacher)
                teachers[key] = term.teacher
                needs[key] = needs.get(key, frozenset()) | term.method.teacher_needs
        return {key: teacher.signals(batch, needs[key]) for key, teacher in teachers.items()}
