"""Wider embedding heads on the student's own features as teachers: method A3, S2SD."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from dmlkd.distill.checks import whole
from dmlkd.distill.counting import Counter
from dmlkd.distill.teachers import Lesson, Teacher
from dmlkd.signals import Batch, Need, Signals, unit_length


class WiderHeadsTeacher(Teacher):
    r"""Heads of higher dimension on the trunk features of the same pass, each trained with the metric loss.

    With listwise self-distillation as the method this is S2SD (Roth et al. 2021, https://arxiv.org/abs/2009.08348):

    .. math:: L = L_\mathrm{metric}(z) + \frac{1}{m} \sum_k L_\mathrm{metric}(g_k)
              + \gamma \Bigl( \frac{1}{m} \sum_k \mathrm{KL}(g_k \,\|\, z) + \mathrm{KL}(h \,\|\, z) \Bigr)

    with heads g_k (linear, ReLU, linear, unit length) on the features h, which teach too after ``features_after``
    steps. The gradient of the heads' metric losses reaches the trunk, that of the lists only the student. The published
    code halves the two metric losses: its gamma = 50 is a weight of 100 here. The heads are not part of the student,
    and so not of the exported model.

    Args:
        features: F, the length of the trunk's features.
        metric_loss: makes the metric loss of a head of a given dimension: a module called as
            ``loss(embeddings, labels, indices)``.
        miner: called as ``miner(embeddings, labels)``; gives the indices. None: all pairs or triplets.
        dims: the dimension of each head.
        features_after: steps of the optimiser after which the features teach; None: never.

    Raises:
        ValueError: if there is no head, or a dimension is not a whole number of at least 1, or ``features_after`` is
            negative.
    """

    gives: frozenset[Need] = frozenset({"embeddings"})
    student_needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    every_step: ClassVar[bool] = True

    def __init__(
        self,
        *,
        features: int,
        metric_loss: Callable[[int], nn.Module],
        miner: Callable[..., object] | None = None,
        dims: Sequence[int] = (512, 1024, 1536, 2048),
        features_after: int | None = 1000,
    ) -> None:
        super().__init__()
        if not dims:
            raise ValueError("dims must name at least one dimension, got none")
        if features_after is not None and features_after < 0:
            raise ValueError(f"features_after must be at least 0 steps, got {features_after!r}")
        self.features_after = features_after
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(features, whole("dims", dim)), nn.ReLU(), nn.Linear(dim, dim)) for dim in dims
        )
        self.metric_losses = nn.ModuleList(metric_loss(dim) for dim in dims)
        self.miner = miner
        self._dims = frozenset(dims)
        self._steps = Counter()

    @property
    @override
    def dims(self) -> frozenset[int]:
        return self._dims

    @property
    @override
    def ready(self) -> bool:
        return True

    @override
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        features = student.features
        assert features is not None
        wider = [unit_length(head(features)) for head in self.heads]
        losses = [
            loss(z, batch.labels, self.miner(z, batch.labels) if self.miner is not None else None)
            for loss, z in zip(self.metric_losses, wider, strict=True)
        ]
        signals = [Signals(z.detach()) for z in wider]
        shares = [1 / len(wider)] * len(wider)
        if self.features_after is not None and self._steps.count >= self.features_after:
            signals.append(Signals(unit_length(features.detach())))
            shares.append(1.0)
        return Lesson(tuple(signals), tuple(shares), loss=torch.stack(losses).mean())

    @override
    def after_step(self, network: nn.Module) -> None:
        self._steps.count += 1

    @override
    def loss_parameters(self) -> Iterable[nn.Parameter]:
        return self.metric_losses.parameters()
