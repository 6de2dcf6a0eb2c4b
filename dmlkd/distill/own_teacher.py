"""Exits taught by the deepest layer of the same pass: method C1, be your own teacher."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from dmlkd.distill.checks import not_negative, positive, whole, within
from dmlkd.distill.lsd import ListwiseSelfDistillation
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.posteriors import CrossEntropy, PosteriorDistillation, wide
from dmlkd.signals import Batch, Need, Signals


def hint_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    r"""How far an exit's features are from the deepest ones, :math:`\sum_i \lVert F_i - \tilde F_i \rVert^2`.

    Summed over the images, as in a public implementation of Zhang et al. 2019 (https://arxiv.org/abs/1905.08094), whose
    weight of 1e-6 belongs to a batch of 128. There F are feature maps, here they are pooled, as stages differ in size.
    Computed in float32 or wider. Nothing flows back to the teacher.

    Args:
        student: (B, F) pooled features of the exit.
        teacher: (B, F) pooled features of the whole network.

    Raises:
        ValueError: if the shapes differ, which broadcasting would hide.

    >>> hint_loss(student=torch.tensor([[1.0, 2.0]]), teacher=torch.tensor([[1.0, 4.0]])).item()
    4.0
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must be (B, F), of the same images and features, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    return (wide(student) - wide(teacher).detach()).square().sum()


class ExitDistillation(DistillationMethod):
    r"""Exits trained with the metric loss and by the deepest embedding of the same pass.

    .. math:: L = \sum_k \bigl[ (1 - a)\, L_\mathrm{metric}(z_k) + a\, \gamma\, \mathrm{KL}(z \,\|\, z_k)
              + b \lVert F_k - F \rVert^2 \bigr]

    Be your own teacher (Zhang et al. 2019, https://arxiv.org/abs/1905.08094) for embeddings: every exit k
    (:class:`~dmlkd.models.ExitingModel`) has its own embedding z_k and metric loss, and the posteriors of the paper are
    similarity lists (:class:`~dmlkd.distill.ListwiseSelfDistillation`). What the whole network says, z and F, is held
    fixed: it learns by its own metric loss, to which the paper gives the factor 1 - a too (here the run's
    ``metric_weight``) and the authors' later code 1. The gradient of all three parts reaches the trunk below the exit.

    Args:
        exits: how many there are.
        dim: D, the length of their embeddings.
        metric_loss: makes the metric loss of an exit of a given dimension: a module called as
            ``loss(embeddings, labels, indices)``.
        miner: called as ``miner(embeddings, labels)``; gives the indices. None: all pairs or triplets.
        share: a, from 0 to 1.
        hint: b >= 0.
        strength: gamma >= 0, on the lists' divergence. It is about B times smaller than that of posteriors, so that 1
            would leave a share without effect; 50 is the weight that listwise self-distillation has in its example.
        temperature: of the lists' softmax.

    Raises:
        ValueError: for a bad number, naming it.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "features", "exit_embeddings", "exit_features"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(
        self,
        *,
        exits: int,
        dim: int,
        metric_loss: Callable[[int], nn.Module],
        miner: Callable[..., object] | None = None,
        share: float = 0.1,
        hint: float = 1e-6,
        strength: float = 50.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.share = within("share", share, 0, 1)
        self.hint = not_negative("hint", hint)
        self.strength = not_negative("strength", strength)
        self.metric_losses = nn.ModuleList(metric_loss(dim) for _ in range(whole("exits", exits)))
        self.miner = miner
        self.comparison = self._comparison(positive("temperature", temperature))

    def _comparison(self, temperature: float) -> DistillationMethod:
        return ListwiseSelfDistillation(temperature=temperature)

    def _said(self, number: int, embeddings: Tensor, features: Tensor) -> Signals:  # noqa: ARG002
        """What an exit says, as of a network of its own."""
        return Signals(embeddings, features)

    def _supervised(self, number: int, said: Signals, batch: Batch) -> Tensor:
        """The loss of an exit that holds the labels."""
        indices = self.miner(said.embeddings, batch.labels) if self.miner is not None else None
        loss: Tensor = self.metric_losses[number](said.embeddings, batch.labels, indices)
        return loss

    def losses_of(self, number: int, *, batch: Batch, said: Signals, deepest: Signals) -> Tensor:
        """Return the loss of one exit, a scalar.

        Args:
            number: the exit's, counted from 0.
            batch: labels and rows.
            said: the exit's embeddings, features, and logits where they are compared, with gradient.
            deepest: the whole network's, without.
        """
        loss = said.embeddings.new_zeros(())
        if self.share < 1:
            loss = loss + (1 - self.share) * self._supervised(number, said, batch)
        if self.share and self.strength:
            compared = self.comparison.from_signals(batch=batch, student=said, teacher=deepest)
            loss = loss + self.share * self.strength * compared
        if self.hint:
            assert said.features is not None
            assert deepest.features is not None
            loss = loss + self.hint * hint_loss(student=said.features, teacher=deepest.features)
        return loss

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert student.exit_embeddings is not None
        assert student.exit_features is not None
        deepest = student.only({"features", "logits"}).map(Tensor.detach)
        pairs = zip(student.exit_embeddings, student.exit_features, strict=True)
        said = [self._said(number, *pair) for number, pair in enumerate(pairs)]
        losses = [self.losses_of(number, batch=batch, said=one, deepest=deepest) for number, one in enumerate(said)]
        return torch.stack(losses).sum()

    @override
    def extra_repr(self) -> str:
        return f"share={self.share}, hint={self.hint}, strength={self.strength}"


class PosteriorExitDistillation(ExitDistillation):
    r"""As :class:`ExitDistillation`, with class posteriors compared as in the paper.

    .. math:: L = \sum_k \bigl[ (1 - a)\, L_k + a\, T^2\, \mathrm{KL}(p(T) \,\|\, p_k(T))
              + b \lVert F_k - F \rVert^2 \bigr]

    Every exit has class scores of its own: those of its metric loss, or of an auxiliary head, and then L_k is its
    metric loss plus that head's weighted cross-entropy.

    Args:
        exits: how many there are.
        dim: D, the length of their embeddings.
        metric_loss: makes the metric loss of an exit of a given dimension.
        class_scores_of: makes the class scores for a metric loss, called with embeddings and giving logits first; and
            the weight of the cross-entropy that trains them, 0 where the metric loss does.
        miner: as of the metric loss.
        share: a, from 0 to 1.
        hint: b >= 0.
        temperature: T > 0.

    Raises:
        ValueError: for a bad number, naming it.
    """

    student_needs: ClassVar[frozenset[Need]] = ExitDistillation.student_needs | {"logits"}

    def __init__(
        self,
        *,
        exits: int,
        dim: int,
        metric_loss: Callable[[int], nn.Module],
        class_scores_of: Callable[[nn.Module], tuple[nn.Module, float]],
        miner: Callable[..., object] | None = None,
        share: float = 0.1,
        hint: float = 1e-6,
        temperature: float = 3.0,
    ) -> None:
        super().__init__(
            exits=exits,
            dim=dim,
            metric_loss=metric_loss,
            miner=miner,
            share=share,
            hint=hint,
            strength=1.0,
            temperature=temperature,
        )
        scored = [class_scores_of(loss) for loss in self.metric_losses]
        self.classes = nn.ModuleList(scores for scores, _ in scored)
        self._weights = [weight for _, weight in scored]
        self._cross_entropy = CrossEntropy()

    @override
    def _comparison(self, temperature: float) -> DistillationMethod:
        return PosteriorDistillation(temperature=temperature)

    @override
    def _said(self, number: int, embeddings: Tensor, features: Tensor) -> Signals:
        return Signals(embeddings, features, logits=self.classes[number](embeddings)[0])

    @override
    def _supervised(self, number: int, said: Signals, batch: Batch) -> Tensor:
        loss = super()._supervised(number, said, batch)
        if not self._weights[number]:
            return loss
        by_label: Tensor = self._cross_entropy(student=said.logits, labels=batch.labels)
        return loss + self._weights[number] * by_label
