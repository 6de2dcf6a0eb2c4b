"""The geometry of the class weights as the teacher: method B5, SKD."""

from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from dmlkd.distill.checks import positive, whole
from dmlkd.distill.posteriors import LabelMixing, wide
from dmlkd.distill.teachers import Lesson, Teacher
from dmlkd.signals import Batch, Need, Signals


class ClassWeights(Protocol):
    """What has one vector a class."""

    def class_weights(self) -> Tensor:
        """(C, D) vectors."""
        ...


def skd(*, share: float = 0.1) -> LabelMixing:
    """SKD's target: the label mixed with classes that look alike, the same share in every epoch.

    Our reading of Hahn and Choi 2019, https://arxiv.org/abs/1908.01851, who mix the label of a word with words whose
    embeddings are near; the neighbours are :class:`ClassGeometryTeacher`'s.

    Args:
        share: lambda, from 0 to 1, that the neighbours have of the target.

    Raises:
        ValueError: for a bad share, naming it.
    """
    return LabelMixing(share=share)


class ClassGeometryTeacher(Teacher):
    r"""Says of an image which classes are near its label's, by the class weights as they are at this step.

    :math:`q_{y k} \propto \exp(-\|w_k - w_y\| / \sigma)` for the k classes nearest to y other than y, and 0 for the
    rest: see :func:`neighbour_logits`. There is no second network and no memory.

    Args:
        class_scores: the student's, whose ``class_weights()`` are read at each step.
        neighbours: k >= 1; where there are fewer other classes, all of them.
        sigma: > 0, the distance over which a class's part falls to 1 / e. Weights are of unit length, so distances go
            from 0 to 2.

    Raises:
        ValueError: for a bad number, naming it.
    """

    gives: frozenset[Need] = frozenset({"logits"})

    def __init__(self, *, class_scores: ClassWeights, neighbours: int = 10, sigma: float = 0.1) -> None:
        super().__init__()
        # The method and not the module: the weights are the student's to train, move and keep.
        self._class_weights = class_scores.class_weights
        self.neighbours = whole("neighbours", neighbours)
        self.sigma = positive("sigma", sigma)

    @property
    @override
    def ready(self) -> bool:
        return True

    @override
    @torch.no_grad()
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        logits = neighbour_logits(self._class_weights(), batch.labels, neighbours=self.neighbours, sigma=self.sigma)
        return Lesson((Signals(student.embeddings.detach(), logits=logits),))

    @override
    def extra_repr(self) -> str:
        return f"neighbours={self.neighbours}, sigma={self.sigma}"


def neighbour_logits(weights: Tensor, labels: Tensor, *, neighbours: int, sigma: float) -> Tensor:
    """Logits (B, C) of the posterior over the classes nearest to each label's.

    Args:
        weights: (C, D), at least 2 classes.
        labels: (B,) class labels.
        neighbours: k, how many; the label's own class is not one of them.
        sigma: > 0.

    Returns:
        Minus distance over sigma for the neighbours, minus infinity for all others.

    Raises:
        ValueError: if there are fewer than 2 classes.

    >>> weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> neighbour_logits(weights, torch.tensor([0, 1]), neighbours=1, sigma=1.0).isfinite()
    tensor([[False,  True, False],
            [ True, False, False]])
    """
    if len(weights) < 2:
        raise ValueError(f"weights must be of at least 2 classes, got {len(weights)}")
    with torch.autocast(weights.device.type, enabled=False):
        weights = wide(weights)
        distance = torch.cdist(weights[labels], weights)
        distance.scatter_(1, labels[:, None], torch.inf)
        nearest = distance.topk(min(neighbours, len(weights) - 1), dim=1, largest=False)
        return torch.full_like(distance, -torch.inf).scatter_(1, nearest.indices, -nearest.values / sigma)
